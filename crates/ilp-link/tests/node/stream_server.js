'use strict'
// An unmodified ilp-protocol-stream server behind the BTP server given as the first argument. Prints
// its address and secret, takes 1000 on a stream, says hello, sends 250 back, and prints what it saw
// when the connection has ended.
const BtpPlugin = require('ilp-plugin-btp')
const { createServer } = require('ilp-protocol-stream')

async function main () {
  const plugin = new BtpPlugin({ server: `btp+ws://:payee@${process.argv[2]}` })
  const server = await createServer({ plugin })
  const { destinationAccount, sharedSecret } = server.generateAddressAndSecret()
  console.log(JSON.stringify({ address: destinationAccount, secret: sharedSecret.toString('base64') }))
  const connection = await server.acceptConnection()
  const data = []
  let stream
  connection.on('stream', opened => {
    stream = opened
    stream.setReceiveMax(1000)
    stream.write('hello from JavaScript')
    stream.on('data', chunk => data.push(chunk))
    stream.on('money', () => {
      if (stream.totalReceived === '1000') stream.setSendMax(250)
    })
  })
  await new Promise(resolve => connection.once('close', resolve))
  return {
    received: stream.totalReceived,
    sent: stream.totalSent,
    data: Buffer.concat(data).toString(),
    asset: [connection.destinationAssetCode, connection.destinationAssetScale]
  }
}

main().then(result => {
  console.log(JSON.stringify(result))
  process.exit(0)
}, error => {
  console.error(error)
  process.exit(1)
})
