'use strict'
// An unmodified ilp-protocol-stream client: arguments are the BTP server, the address and the shared
// secret (base64). It pays 300 and 200 on two streams, prints the receipts, and waits until the other
// end closes the connection with an error. Prints one line of JSON for each of the two.
const BtpPlugin = require('ilp-plugin-btp')
const { createConnection } = require('ilp-protocol-stream')

const [server, destinationAccount, secret] = process.argv.slice(2)

async function main () {
  const plugin = new BtpPlugin({ server: `btp+ws://:payer@${server}` })
  const connection = await createConnection({
    plugin, destinationAccount, sharedSecret: Buffer.from(secret, 'base64')
  })
  const failed = new Promise(resolve => connection.once('error', resolve))
  const streams = [connection.createStream(), connection.createStream()]
  streams.forEach(stream => stream.on('error', () => {}))
  await Promise.all([streams[0].sendTotal(300), streams[1].sendTotal(200)])
  console.log(JSON.stringify({ receipts: streams.map(stream => stream.receipt.toString('base64')) }))
  return { error: (await failed).message }
}

main().then(result => {
  console.log(JSON.stringify(result))
  process.exit(0)
}, error => {
  console.error(error)
  process.exit(1)
})
