'use strict'
// A payment pointer (SPSP, RFC 9) of an unmodified ilp-protocol-stream server behind ilp-plugin, which
// connects to ILP_BTP_SERVER. Prints {url}, and {received}, the total, when a connection has ended.
const http = require('http')
const makePlugin = require('ilp-plugin')
const { createServer } = require('ilp-protocol-stream')

const print = object => console.log(JSON.stringify(object))

async function main () {
  const server = await createServer({ plugin: makePlugin() })
  let received = 0n
  server.on('connection', connection => {
    connection.on('stream', stream => {
      stream.setReceiveMax('18446744073709551615')
      stream.on('money', amount => { received += BigInt(amount) })
    })
    connection.once('close', () => print({ received: received.toString() }))
  })
  const listener = http.createServer((request, response) => {
    const accepts = (request.headers.accept || '').includes('application/spsp4+json')
    if (request.method !== 'GET' || request.url !== '/alice' || !accepts) {
      response.writeHead(404)
      return response.end()
    }
    const { destinationAccount, sharedSecret } = server.generateAddressAndSecret()
    response.writeHead(200, { 'Content-Type': 'application/spsp4+json' })
    response.end(JSON.stringify({
      destination_account: destinationAccount,
      shared_secret: sharedSecret.toString('base64')
    }))
  })
  listener.listen(0, '127.0.0.1', () => {
    print({ url: `http://127.0.0.1:${listener.address().port}/alice` })
  })
}

main().catch(error => {
  console.error(error)
  process.exit(1)
})
