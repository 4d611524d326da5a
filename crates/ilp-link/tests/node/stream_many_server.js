'use strict'
// An unmodified ilp-protocol-stream server behind the BTP server given as the first argument. It gives
// receipts, raises what it takes of each stream in steps up to 400, echoes data, pays 77 on a stream
// of its own, and ends the connection with an error when it reads "fail" there. Prints its address and
// secret, then what it saw.
const BtpPlugin = require('ilp-plugin-btp')
const { createServer } = require('ilp-protocol-stream')

async function main () {
  const plugin = new BtpPlugin({ server: `btp+ws://:payee@${process.argv[2]}` })
  const server = await createServer({ plugin })
  const { destinationAccount, sharedSecret } = server.generateAddressAndSecret({
    receiptNonce: Buffer.alloc(16, 1), receiptSecret: Buffer.alloc(32, 2)
  })
  console.log(JSON.stringify({ address: destinationAccount, secret: sharedSecret.toString('base64') }))
  const connection = await server.acceptConnection()
  connection.on('error', () => {})
  const received = {}
  connection.on('stream', stream => {
    stream.on('error', () => {})
    stream.setReceiveMax(100)
    stream.on('money', () => {
      received[stream.id] = stream.totalReceived
      const most = Number(stream.receiveMax)
      if (Number(stream.totalReceived) === most && most < 400) stream.setReceiveMax(most + 100)
    })
    stream.on('data', chunk => stream.write(chunk))
  })
  const own = connection.createStream()
  own.on('error', () => {})
  own.setSendMax(77)
  own.write('from the server')
  await new Promise(resolve => own.on('data', chunk => {
    if (chunk.toString() === 'fail') resolve()
  }))
  const result = { received, sent: own.totalSent }
  await connection.destroy(new Error('out of order'))
  return result
}

main().then(result => {
  console.log(JSON.stringify(result))
  process.exit(0)
}, error => {
  console.error(error)
  process.exit(1)
})
