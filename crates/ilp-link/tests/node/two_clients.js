'use strict'
// Two unmodified ilp-plugin-btp clients at the server given as the first argument. They ask for
// their addresses by ILDCP, and pay each other. Prints one line of JSON.
const crypto = require('crypto')
const BtpPlugin = require('ilp-plugin-btp')
const IldcpClient = require('ilp-protocol-ildcp')
const IlpPacket = require('ilp-packet')

const server = process.argv[2]
const fulfillment = Buffer.alloc(32, 5)
const condition = crypto.createHash('sha256').update(fulfillment).digest()

async function open (credentials) {
  const plugin = new BtpPlugin({ server: `btp+ws://${credentials}@${server}` })
  await plugin.connect()
  const account = await IldcpClient.fetch(plugin.sendData.bind(plugin))
  return { plugin, account }
}

async function prepare (plugin, destination, amount, data, expiresIn = 20000) {
  const reply = await plugin.sendData(IlpPacket.serializeIlpPrepare({
    amount,
    executionCondition: condition,
    destination,
    data: Buffer.from(data),
    expiresAt: new Date(Date.now() + expiresIn)
  }))
  return IlpPacket.deserializeIlpPacket(reply)
}

async function main () {
  const payer = await open(':payer-token')
  const payee = await open('payee:payee-token')
  const seen = []
  payee.plugin.registerDataHandler(async packet => {
    const { amount, expiresAt, destination, data } = IlpPacket.deserializeIlpPrepare(packet)
    seen.push({ amount, destination, left: expiresAt - Date.now() })
    if (data.toString() === 'refuse') {
      return IlpPacket.serializeIlpReject({ code: 'F99', triggeredBy: destination, message: 'no', data })
    }
    const answer = data.toString() === 'cheat' ? Buffer.alloc(32, 6) : fulfillment
    return IlpPacket.serializeIlpFulfill({ fulfillment: answer, data: Buffer.concat([data, Buffer.from('!')]) })
  })
  const to = payee.account.clientAddress
  const brief = ({ typeString, data }) => typeString === 'ilp_fulfill'
    ? { type: typeString, fulfillment: data.fulfillment.toString('hex'), data: data.data.toString() }
    : { type: typeString, code: data.code, triggeredBy: data.triggeredBy, message: data.message }
  const replies = {
    paid: brief(await prepare(payer.plugin, `${to}.invoice`, '1234', 'hello')),
    refused: brief(await prepare(payer.plugin, to, '10', 'refuse')),
    cheated: brief(await prepare(payer.plugin, to, '10', 'cheat')),
    unknown: brief(await prepare(payer.plugin, `${to}x`, '10', 'hello')),
    late: brief(await prepare(payer.plugin, to, '10', 'hello', 1500))
  }
  const many = await Promise.all(Array.from({ length: 200 }, (_, at) =>
    prepare(payer.plugin, to, '1', `packet ${at}`)))
  const inOrder = many.every(({ data }, at) => data.data.toString() === `packet ${at}!`)
  await payer.plugin.disconnect()
  await payee.plugin.disconnect()
  return { payer: payer.account, payee: payee.account, replies, inOrder, seen: seen.slice(0, 3), count: seen.length }
}

main().then(result => {
  console.log(JSON.stringify(result))
  process.exit(0)
}, error => {
  console.error(error)
  process.exit(1)
})
