'use strict'
// A program for a pod: it takes payments through SPSP at its own URL and spends them again. Nothing in
// it knows of the host; everything is ilp-plugin by default.
const http = require('http')
const makePlugin = require('ilp-plugin')
const Ildcp = require('ilp-protocol-ildcp')
const { createConnection, createServer } = require('ilp-protocol-stream')

async function identity (plugin) {
  await plugin.connect()
  const { clientAddress, assetCode, assetScale } = await Ildcp.fetch(plugin.sendData.bind(plugin))
  return { address: clientAddress, assetCode, assetScale }
}

// Sends so much of the amount as goes within the time.
async function send (to, secret, amount, timeout) {
  const plugin = makePlugin()
  const connection = await createConnection({
    plugin, destinationAccount: to, sharedSecret: Buffer.from(secret, 'base64'), slippage: 0
  })
  const stream = connection.createStream()
  const outcome = await stream.sendTotal(amount, { timeout }).then(() => 'sent', error => error.message)
  const sent = stream.totalSent
  // Its good-bye may wait for money that is not there.
  await Promise.race([connection.destroy().catch(() => {}), new Promise(resolve => setTimeout(resolve, 1000))])
  return { outcome, sent }
}

// Who a second client becomes that calls itself `name`.
async function claim (name) {
  const plugin = makePlugin({ name })
  const claimed = await identity(plugin)
  await plugin.disconnect()
  return claimed
}

async function main () {
  const plugin = makePlugin()
  const server = await createServer({ plugin })
  let received = 0
  server.on('connection', connection => connection.on('stream', stream => {
    stream.setReceiveMax(1000000000)
    stream.on('money', amount => { received += Number(amount) })
  }))
  const own = await identity(plugin)
  const routes = {
    'GET /.well-known/pay': () => {
      const { destinationAccount, sharedSecret } = server.generateAddressAndSecret()
      return { destination_account: destinationAccount, shared_secret: sharedSecret.toString('base64') }
    },
    'GET /config': () => own,
    'GET /received': () => ({ received }),
    'POST /send': query => send(query.get('to'), query.get('secret'), query.get('amount'), Number(query.get('timeout'))),
    'POST /claim': query => claim(query.get('name'))
  }
  http.createServer(async (request, response) => {
    const { pathname, searchParams } = new URL(request.url, 'http://localhost')
    const route = routes[`${request.method} ${pathname}`]
    try {
      const answer = route ? await route(searchParams) : { error: 'there is no such thing' }
      response.writeHead(route ? 200 : 404, { 'Content-Type': 'application/spsp4+json' })
      response.end(JSON.stringify(answer))
    } catch (error) {
      response.writeHead(500).end(error.stack)
    }
  }).listen(8080)
  console.log('listening as', own.address)
}

process.on('unhandledRejection', error => console.error('unhandled:', error))
main().catch(error => {
  console.error(error)
  process.exit(1)
})
