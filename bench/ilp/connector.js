'use strict'
// The connector that moneyd 4.3.0 brings, with moneyd's settings for a network of its own, on a port
// of its own choice and without the limit of 10 000 packets a minute. Ends when its standard input does.
const net = require('net')
const Connector = require('ilp-connector')

function freePort () {
  return new Promise((resolve, reject) => {
    const server = net.createServer()
    server.on('error', reject)
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address()
      server.close(() => resolve(port))
    })
  })
}

async function main () {
  const port = await freePort()
  await Connector.createApp({
    spread: 0,
    backend: 'one-to-one',
    store: 'ilp-store-memory',
    initialConnectTimeout: 60000,
    ilpAddress: 'private.moneyd',
    env: 'production',
    accounts: {
      local: {
        relation: 'child',
        plugin: 'ilp-plugin-mini-accounts',
        assetCode: 'XRP',
        assetScale: 9,
        balance: { minimum: '-Infinity', maximum: 'Infinity', settleThreshold: '-Infinity' },
        rateLimit: { refillPeriod: 1000, refillCount: 1e9, capacity: 1e9 },
        options: { wsOpts: { host: '127.0.0.1', port } }
      }
    }
  }).listen()
  process.stdin.resume()
  process.stdin.on('end', () => process.exit(0))
  console.log(JSON.stringify({ ports: [port] }))
}

main().catch(error => { console.error(error); process.exit(1) })
