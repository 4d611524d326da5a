'use strict'
// What people outside do, with the unmodified libraries:
//   upload API SECONDS MAX_PRICE MANIFEST   uploads a program with ilp-fetch
//   pay URL AMOUNT                          pays a program through SPSP
//   shop                                    takes money: prints where, and each new total
// Prints JSON, a line for each answer.
const dns = require('dns')
const makePlugin = require('ilp-plugin')
const Spsp = require('ilp-protocol-spsp')
const ilpFetch = require('ilp-fetch')
const { createServer } = require('ilp-protocol-stream')

// Names below `localhost` are this machine (RFC 6761), also where the resolver does not know it.
const lookup = dns.lookup
dns.lookup = (name, options, callback) =>
  lookup(name.endsWith('.localhost') ? '127.0.0.1' : name, options, callback)

const say = value => console.log(JSON.stringify(value))

const commands = {
  async upload (api, seconds, maxPrice, manifest) {
    const url = `${api}/pods?duration=${seconds}`
    const request = { headers: { Accept: 'application/codius-v1+json', 'Content-Type': 'application/json' }, body: manifest }
    const quote = await ilpFetch(url, { method: 'OPTIONS', ...request })
    const quoted = await quote.json()
    const answer = await ilpFetch(url, { method: 'POST', maxPrice, ...request })
    say({ quoted, status: answer.status, paid: answer.price, destination: answer.destination, body: await answer.json() })
  },

  async pay (url, amount) {
    const { destination_account: destination } = await Spsp.query(url)
    const { totalSent } = await Spsp.pay(makePlugin(), { pointer: url, sourceAmount: amount })
    say({ destination, totalSent })
  },

  async shop () {
    const server = await createServer({ plugin: makePlugin() })
    let received = 0
    server.on('connection', connection => connection.on('stream', stream => {
      stream.setReceiveMax(Infinity)
      stream.on('money', amount => say({ received: received += Number(amount) }))
    }))
    const { destinationAccount, sharedSecret } = server.generateAddressAndSecret()
    say({ to: destinationAccount, secret: sharedSecret.toString('base64') })
    // Until it is killed.
    await new Promise(() => setInterval(() => {}, 1000))
  }
}

const [command, ...words] = process.argv.slice(2)
commands[command](...words).then(() => process.exit(0), error => {
  console.error(error)
  process.exit(1)
})
