'use strict'
// An unmodified ilp-protocol-spsp and ilp-protocol-stream behind ilp-plugin, which connects to
// ILP_BTP_SERVER. Prints lines of JSON.
//
//   pay POINTER AMOUNT             {sent, error}
//   prove POINTER AMOUNT           {enabled, sent, receipt}
//   drip POINTER STEP CONNECTIONS  {sent} after every packet, and {sent, errors} when each of the
//                                  connections has been refused: payments of STEP, one after the other.
//                                  Who is refused leaves at once, and waits for 35 s for an answer that
//                                  comes too late
//
// What drip has sent is counted where it is certain: at the Fulfills that came back.
const IlpPacket = require('ilp-packet')
const makePlugin = require('ilp-plugin')
const SPSP = require('ilp-protocol-spsp')
const { createConnection } = require('ilp-protocol-stream')

const print = object => console.log(JSON.stringify(object))

async function pay (pointer, sourceAmount) {
  try {
    const { totalSent } = await SPSP.pay(makePlugin(), { pointer, sourceAmount })
    print({ sent: totalSent, error: null })
  } catch (error) {
    print({ sent: error.totalSent || '0', error: error.message })
  }
}

async function open (plugin, response) {
  await plugin.connect()
  return createConnection({
    plugin,
    destinationAccount: response.destination_account,
    sharedSecret: Buffer.from(response.shared_secret, 'base64')
  })
}

// Through the URL of a verifier, which says nothing of the media type; `SPSP.pay` wants one.
async function prove (pointer, amount) {
  const response = await SPSP.query(pointer)
  const connection = await open(makePlugin(), response)
  const stream = connection.createStream()
  await stream.sendTotal(amount)
  print({
    enabled: response.receipts_enabled,
    sent: stream.totalSent,
    receipt: stream.receipt.toString('base64')
  })
  await connection.end()
}

async function drip (pointer, step, connections) {
  let sent = 0n
  const underWay = new Set()

  const counting = plugin => {
    const sendData = plugin.sendData.bind(plugin)
    plugin.sendData = data => {
      const { amount } = IlpPacket.deserializeIlpPrepare(data)
      const sending = sendData(data).then(reply => {
        if (reply[0] === IlpPacket.Type.TYPE_ILP_FULFILL && amount !== '0') {
          sent += BigInt(amount)
          print({ sent: sent.toString() })
        }
        return reply
      })
      underWay.add(sending)
      const done = () => underWay.delete(sending)
      sending.then(done, done)
      return sending
    }
    return plugin
  }

  const one = async () => {
    const plugin = counting(makePlugin())
    const connection = await open(plugin, await SPSP.query(pointer))
    const errors = []
    connection.on('error', error => {
      errors.push(error.message)
      plugin.disconnect()
    })
    const stream = connection.createStream()
    stream.on('error', error => errors.push(error.message))
    try {
      for (let wanted = step; ; wanted += step) await stream.sendTotal(wanted)
    } catch (error) {
      errors.push(error.message)
    }
    return errors.join('; ')
  }

  const errors = await Promise.all(Array.from({ length: connections }, one))
  while (underWay.size > 0) await Promise.allSettled(underWay)
  print({ sent: sent.toString(), errors })
}

const [command, pointer, ...numbers] = process.argv.slice(2)
const commands = {
  pay: () => pay(pointer, numbers[0]),
  prove: () => prove(pointer, numbers[0]),
  drip: () => drip(pointer, ...numbers.map(Number))
}
commands[command]().then(() => process.exit(0), error => {
  console.error(error)
  process.exit(1)
})
