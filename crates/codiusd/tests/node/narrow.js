'use strict'
// Pays more than fits into one packet of this path, and is not told beforehand what fits: both ways,
// over one connection of the server on port 7768. Prints one JSON object.
const makePlugin = require('ilp-plugin')
const { createConnection, createServer } = require('ilp-protocol-stream')

async function main () {
  const server = await createServer({ plugin: makePlugin() })
  server.on('connection', connection => connection.on('stream', stream => {
    stream.setReceiveMax(Infinity)
    stream.setSendMax(100000)
  }))
  const { destinationAccount, sharedSecret } = server.generateAddressAndSecret()
  const plugin = makePlugin()
  const replies = {}
  const sendData = plugin.sendData.bind(plugin)
  plugin.sendData = async packet => {
    const reply = await sendData(packet)
    const content = reply[1] < 128 ? 2 : 2 + (reply[1] & 127)
    const kind = reply[0] === 13 ? 'fulfill' : reply.slice(content, content + 3).toString()
    replies[kind] = (replies[kind] || 0) + 1
    return reply
  }
  const connection = await createConnection({ plugin, destinationAccount, sharedSecret })
  const stream = connection.createStream()
  await Promise.all([stream.sendTotal(300000), stream.receiveTotal(100000)])
  return {
    sent: stream.totalSent,
    delivered: connection.totalDelivered,
    received: stream.totalReceived,
    packets: replies.fulfill,
    tooLarge: replies.F08 || 0
  }
}

main().then(result => {
  console.log(JSON.stringify(result))
  process.exit(0)
}, error => {
  console.error(error)
  process.exit(1)
})
