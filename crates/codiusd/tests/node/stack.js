'use strict'
// The JavaScript stack as programs use it, against whatever listens on port 7768 of this machine:
// prints what happened as one JSON object, a member for each use.
const assert = require('assert')
const crypto = require('crypto')
const http = require('http')
const makePlugin = require('ilp-plugin')
const BtpPlugin = require('ilp-plugin-btp')
const Ildcp = require('ilp-protocol-ildcp')
const Spsp = require('ilp-protocol-spsp')
const ilpFetch = require('ilp-fetch')
const { createConnection, createServer } = require('ilp-protocol-stream')

// How long one use may take on a slow machine.
const USE_TIMEOUT_MS = 60000
const CLOSE_TIMEOUT_MS = 500

const sha256 = bytes => crypto.createHash('sha256').update(bytes).digest()
const fresh = () => crypto.randomBytes(16).toString('hex')
const hashed = token => sha256(Buffer.from(token)).toString('base64')
  .replace(/\+/g, '-').replace(/\//g, '_').replace(/=/g, '')
const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))
const once = (emitter, event) => new Promise(resolve => emitter.once(event, resolve))

async function until (what, condition) {
  for (const end = Date.now() + 20000; !condition(); await sleep(5)) {
    assert(Date.now() < end, 'waited too long until ' + what)
  }
}

// A STREAM server that takes so much on each stream, and what it saw.
async function receiver (plugin = makePlugin(), takes = Infinity) {
  const server = await createServer({ plugin })
  const seen = { connections: [], received: 0 }
  server.on('connection', connection => {
    seen.connections.push(connection)
    connection.on('stream', stream => {
      stream.setReceiveMax(takes)
      stream.on('money', amount => { seen.received += Number(amount) })
    })
  })
  return { server, plugin, seen }
}

// Watches the packets of a plugin on their way, and changes nothing.
function watch (plugin) {
  const watched = { packets: 0, replies: {} }
  const sendData = plugin.sendData.bind(plugin)
  plugin.sendData = async packet => {
    watched.packets++
    const reply = await sendData(packet)
    const kind = reply[0] === 13 ? 'fulfill' : reply.slice(reply[1] < 128 ? 2 : 2 + (reply[1] & 127)).slice(0, 3).toString()
    watched.replies[kind] = (watched.replies[kind] || 0) + 1
    if (watched.after) await watched.after()
    return reply
  }
  return watched
}

// Closing says good-bye to clients that may be gone already, and is not what is looked at here.
const leave = ({ server }) => Promise.race([server.close().catch(() => {}), sleep(CLOSE_TIMEOUT_MS)])

async function connect ({ server }, options = {}, plugin = makePlugin()) {
  const { destinationAccount, sharedSecret } = server.generateAddressAndSecret()
  const watched = watch(plugin)
  const connection = await createConnection({ plugin, destinationAccount, sharedSecret, ...options })
  return { connection, plugin, watched }
}

// An HTTP server on this machine and where it is.
async function listen (handler) {
  const server = http.createServer((request, response) => {
    Promise.resolve(handler(request, response)).catch(error => response.writeHead(500).end(error.message))
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  return { server, url: `http://127.0.0.1:${server.address().port}` }
}

// Who a plugin is, with its token taken out of the address.
async function identity (plugin) {
  await plugin.connect()
  const { clientAddress, assetCode, assetScale } = await Ildcp.fetch(plugin.sendData.bind(plugin))
  await plugin.disconnect()
  const segments = clientAddress.split('.')
  const own = segments.pop()
  return [segments.join('.'), own.replace(hashed(plugin._btpToken), 'HASH'), assetCode, assetScale]
}

async function inEnvironment (variables, use) {
  Object.assign(process.env, variables)
  try {
    return await use()
  } finally {
    for (const name of Object.keys(variables)) delete process.env[name]
  }
}

const uses = {
  'ilp-plugin by default': () => identity(makePlugin()),
  'ilp-plugin with a name': () => identity(makePlugin({ name: 'shop' })),
  'ilp-plugin and ILP_BTP_SERVER': () =>
    inEnvironment({ ILP_BTP_SERVER: 'btp+ws://localhost:7768' }, () => identity(makePlugin())),
  'ilp-plugin and ILP_CREDENTIALS': () =>
    inEnvironment({ ILP_CREDENTIALS: JSON.stringify({ server: `btp+ws://:${fresh()}@localhost:7768/a/path` }) },
      () => identity(makePlugin())),
  'ilp-plugin-btp with account and token': () =>
    identity(new BtpPlugin({ server: 'btp+ws://localhost:7768', btpAccount: 'mill', btpToken: fresh() })),

  'a payment': async () => {
    const payee = await receiver()
    const { connection, watched } = await connect(payee)
    const stream = connection.createStream()
    await stream.sendTotal(1000)
    await connection.end()
    const [{ totalReceived, sourceAssetCode, sourceAssetScale }] = payee.seen.connections
    await leave(payee)
    return {
      sent: connection.totalSent,
      delivered: connection.totalDelivered,
      received: totalReceived,
      rate: [connection.minimumAcceptableExchangeRate, connection.lastPacketExchangeRate],
      assets: [connection.sourceAssetCode, connection.sourceAssetScale, connection.destinationAssetCode,
        connection.destinationAssetScale, sourceAssetCode, sourceAssetScale],
      tooLarge: watched.replies.F08 || 0
    }
  },

  'a payment by a named plugin to another': async () => {
    const payee = await receiver(makePlugin({ name: 'payee' }))
    const { connection } = await connect(payee, {}, makePlugin({ name: 'payer' }))
    await connection.createStream().sendTotal(77)
    await connection.end()
    await leave(payee)
    return [connection.totalSent, payee.seen.received]
  },

  'money both ways in one connection': async () => {
    const payee = await receiver()
    payee.server.on('connection', connection => connection.on('stream', stream => stream.setSendMax(300)))
    const { connection } = await connect(payee)
    const stream = connection.createStream()
    await Promise.all([stream.sendTotal(700), stream.receiveTotal(300)])
    const [theirs] = payee.seen.connections
    await until('the other side knows', () => theirs.totalSent === '300')
    const result = [stream.totalSent, stream.totalReceived, theirs.totalReceived, theirs.totalSent]
    await connection.end()
    await leave(payee)
    return result
  },

  'several streams in one connection, of both sides': async () => {
    const payee = await receiver()
    payee.server.on('connection', connection => connection.createStream().setSendMax(50))
    const { connection } = await connect(payee)
    connection.on('stream', stream => stream.setReceiveMax(Infinity))
    const amounts = [1, 20, 300, 4000, 50000]
    const streams = amounts.map(() => connection.createStream())
    await Promise.all(streams.map((stream, at) => stream.sendTotal(amounts[at])))
    await until('the other side has paid', () => connection.totalReceived === '50')
    const result = [streams.map(it => it.totalSent), connection.totalSent, payee.seen.received, connection.totalReceived]
    await connection.end()
    await leave(payee)
    return result
  },

  'data both ways': async () => {
    const payee = await receiver()
    const there = crypto.randomBytes(200000)
    const back = crypto.randomBytes(150000)
    const arrived = { there: [], back: [] }
    const size = chunks => chunks.reduce((sum, chunk) => sum + chunk.length, 0)
    payee.server.on('connection', connection => connection.on('stream', stream => {
      stream.on('data', chunk => arrived.there.push(chunk))
      stream.write(back)
    }))
    const { connection } = await connect(payee)
    const stream = connection.createStream()
    stream.on('data', chunk => arrived.back.push(chunk))
    stream.write(there)
    await until('all is there', () => size(arrived.there) >= there.length && size(arrived.back) >= back.length)
    await connection.end()
    await leave(payee)
    return [Buffer.concat(arrived.there).equals(there), Buffer.concat(arrived.back).equals(back)]
  },

  'a large payment in many packets': async () => {
    const payee = await receiver()
    const { connection, watched } = await connect(payee, { maximumPacketAmount: '10000' })
    await connection.createStream().sendTotal(2000000)
    await connection.end()
    await leave(payee)
    return {
      sent: connection.totalSent,
      received: payee.seen.received,
      many: watched.replies.fulfill >= 200,
      refused: Object.keys(watched.replies).filter(kind => kind !== 'fulfill' && kind !== 'F99')
    }
  },

  'a payment that is not wanted': async () => {
    const payee = await receiver(makePlugin(), 400)
    const { connection } = await connect(payee)
    const stream = connection.createStream()
    const outcome = await stream.sendTotal(1000, { timeout: 1500 }).then(() => 'sent', () => 'not sent')
    const result = [outcome, stream.totalSent, payee.seen.received]
    await connection.end()
    await leave(payee)
    return result
  },

  'a payment to nobody': async () => {
    const plugin = makePlugin()
    await plugin.connect()
    const { clientAddress } = await Ildcp.fetch(plugin.sendData.bind(plugin))
    const destinationAccount = clientAddress.replace(/[^.]+$/, 'nobody')
    return createConnection({ plugin, destinationAccount, sharedSecret: crypto.randomBytes(32) })
      .then(() => 'connected', error => error.message)
  },

  'eight payers at once': async () => {
    const payee = await receiver()
    const payers = await Promise.all(Array.from({ length: 8 }, () => connect(payee, { maximumPacketAmount: '100' })))
    await Promise.all(payers.map(({ connection }, at) => connection.createStream().sendTotal(2000 + at)))
    await Promise.all(payers.map(({ connection }) => connection.end()))
    await leave(payee)
    return [payers.map(({ connection }) => connection.totalSent), payee.seen.received]
  },

  'a payer and a payee that lose their connection on the way': async () => {
    const payee = await receiver()
    const { connection, plugin, watched } = await connect(payee, { maximumPacketAmount: '100' })
    const address = async it => (await Ildcp.fetch(it.sendData.bind(it))).clientAddress
    const before = await Promise.all([address(plugin), address(payee.plugin)])
    let lost = 0
    // After the tenth packet and after the twentieth, one of them is cut off; both connect again.
    watched.after = async () => {
      if (watched.replies.fulfill !== 10 * (lost + 1) || lost === 2) return
      const cut = [plugin, payee.plugin][lost++]
      const again = once(cut, 'connect')
      cut._ws._instance.terminate()
      await again
    }
    await connection.createStream().sendTotal(4000)
    watched.after = undefined
    const after = await Promise.all([address(plugin), address(payee.plugin)])
    await connection.end()
    await leave(payee)
    assert.deepStrictEqual(after, before)
    return { lost, sent: connection.totalSent, received: payee.seen.received }
  },

  'SPSP: query, pay and pull': async () => {
    const payee = await receiver()
    payee.server.on('connection', connection => connection.on('stream', stream => stream.setSendMax(25)))
    const { server, url } = await listen((request, response) => {
      const { destinationAccount, sharedSecret } = payee.server.generateAddressAndSecret()
      response.setHeader('Content-Type', 'application/spsp4+json')
      response.end(JSON.stringify({ destination_account: destinationAccount, shared_secret: sharedSecret.toString('base64') }))
    })
    const quoted = await Spsp.query(url)
    const paid = await Spsp.pay(makePlugin(), { pointer: url, sourceAmount: '1234' })
    const pulled = await Spsp.pull(makePlugin(), { pointer: url, amount: '25' })
    server.close()
    await leave(payee)
    return [Object.keys(quoted), quoted.content_type, paid, pulled, payee.seen.received]
  },

  'ilp-fetch: a price, a paid answer, one that is too dear, a payment by token': async () => {
    const payee = await receiver(makePlugin(), 0)
    const streams = new Map()
    payee.server.on('connection', connection => connection.on('stream', stream => {
      streams.set(connection.connectionTag, stream)
      stream.write(Buffer.from([0xff]))
    }))
    const price = 5000
    const { server, url } = await listen(async (request, response) => {
      if (request.method === 'OPTIONS') return response.end(JSON.stringify({ price: String(price) }))
      const tag = Buffer.from(request.headers['pay-token'], 'base64').toString('hex')
      const stream = streams.get(tag)
      if (!stream) {
        const { destinationAccount, sharedSecret } = payee.server.generateAddressAndSecret(tag)
        response.writeHead(402, { Pay: `interledger-stream ${destinationAccount} ${sharedSecret.toString('base64')}` })
        return response.end()
      }
      const paid = await stream.receiveTotal(price, { timeout: 1500 }).then(() => true, () => false)
      response.writeHead(paid ? 200 : 402).end(paid ? 'here you are' : 'too little')
    })
    const answers = []
    for (const [method, maxPrice, payToken] of [['OPTIONS', '1'], ['GET', '9000'], ['POST', '4000'], ['PUT', '5000', crypto.randomBytes(16)]]) {
      const answer = await ilpFetch(url, { method, maxPrice, payToken })
      answers.push([method, answer.status, await answer.text(), answer.price, answer.source, answer.destination])
    }
    server.close()
    await leave(payee)
    return answers
  }
}

const tooLong = () => sleep(USE_TIMEOUT_MS).then(() => { throw new Error('took too long') })

async function main () {
  const results = {}
  for (const [name, use] of Object.entries(uses)) {
    results[name] = await Promise.race([use(), tooLong()]).catch(error => ({ failed: error.stack }))
  }
  return results
}

// A connection that fails says so twice; the second time is not for us.
process.on('unhandledRejection', error => console.error('unhandled:', error))
main().then(results => {
  console.log(JSON.stringify(results))
  process.exit(0)
}, error => {
  console.error(error)
  process.exit(1)
})
