'use strict'
// An unmodified ilp-protocol-stream client: arguments are the BTP server, the address and the shared
// secret (base64). It waits for a byte, as ilp-fetch does, pays what is asked of at most 5000, takes
// back at most 1000, and ends. Prints one line of JSON.
const BtpPlugin = require('ilp-plugin-btp')
const { createConnection } = require('ilp-protocol-stream')

const [server, destinationAccount, secret] = process.argv.slice(2)

async function main () {
  const plugin = new BtpPlugin({ server: `btp+ws://:payer@${server}` })
  const connection = await createConnection({
    plugin, destinationAccount, sharedSecret: Buffer.from(secret, 'base64')
  })
  const stream = connection.createStream()
  stream.setSendMax(5000)
  stream.setReceiveMax(1000)
  const data = []
  stream.on('data', chunk => data.push(chunk))
  await new Promise(resolve => stream.once('data', resolve))
  const sentBeforeTheByte = stream.totalSent
  stream.write('thank you')
  // The refund may overtake the Fulfill of the payment, so both are waited for.
  await new Promise(resolve => {
    const check = () => {
      if (stream.totalSent === '1234' && stream.totalReceived === '234') resolve()
    }
    stream.on('money', check)
    stream.on('outgoing_money', check)
  })
  const result = {
    data: Buffer.concat(data).toString('hex'),
    sentBeforeTheByte,
    sent: stream.totalSent,
    received: stream.totalReceived,
    asset: [connection.destinationAssetCode, connection.destinationAssetScale]
  }
  await connection.end()
  return result
}

main().then(result => {
  console.log(JSON.stringify(result))
  process.exit(0)
}, error => {
  console.error(error)
  process.exit(1)
})
