// Answers each line of standard input with what the JavaScript libraries say about it, one line each.
//
// A question has the bytes of a packet ("read"), or the fields of one ("write"), or both; the answer
// has the fields that were read, or the bytes that were written, or the message of the error. 64-bit
// integers are text in both directions and bytes are hexadecimal.
'use strict'
const readline = require('readline')
const path = require('path')
const Ilp = require('ilp-packet')
const Ildcp = require('ilp-protocol-ildcp')
const Btp = require('btp-packet')
// Below the interface of the package: its packets and its cryptography.
const streamDirectory = path.dirname(require.resolve('ilp-protocol-stream'))
const Stream = require(path.join(streamDirectory, 'packet.js'))
const StreamCrypto = require(path.join(streamDirectory, 'crypto.js'))

const hex = (buffer) => buffer.toString('hex')
const bytes = (text) => Buffer.from(text, 'hex')

const protocols = {
  ilp: {
    read (packet) {
      const { type, data } = Ilp.deserializeIlpPacket(packet)
      const fields = { type, data: hex(data.data) }
      if (type === 12) {
        fields.amount = data.amount
        fields.expires = data.expiresAt.getTime()
        fields.condition = hex(data.executionCondition)
        fields.destination = data.destination
      } else if (type === 13) {
        fields.fulfillment = hex(data.fulfillment)
      } else {
        fields.code = data.code
        fields.triggeredBy = data.triggeredBy
        fields.message = data.message
      }
      return fields
    },
    write (fields) {
      const data = { ...fields, data: bytes(fields.data) }
      if (fields.type === 12) {
        data.expiresAt = new Date(fields.expires)
        data.executionCondition = bytes(fields.condition)
      } else if (fields.type === 13) {
        data.fulfillment = bytes(fields.fulfillment)
      }
      return Ilp.serializeIlpPacket({ type: fields.type, data })
    }
  },
  ildcp: {
    read: (packet) => Ildcp.deserializeIldcpResponse(packet),
    write: (fields) => Ildcp.serializeIldcpResponse(fields)
  },
  ildcpRequest: {
    write: (fields) => Ildcp.serializeIldcpRequest({ expiresAt: new Date(fields.expires) })
  },
  btp: {
    read (packet) {
      const { type, requestId, data } = Btp.deserialize(packet)
      const fields = { type, requestId, protocols: data.protocolData.map(readProtocol) }
      if (type === 2) {
        const { code, name, triggeredAt, data: text } = data
        Object.assign(fields, { code, name, triggeredAt: triggeredAt.getTime(), text })
      } else if (type === 7) {
        fields.amount = data.amount
      }
      return fields
    },
    write (fields) {
      const data = {
        protocolData: fields.protocols.map(([protocolName, contentType, data]) =>
          ({ protocolName, contentType, data: bytes(data) }))
      }
      if (fields.type === 2) {
        Object.assign(data, { code: fields.code, name: fields.name, data: fields.text })
        data.triggeredAt = new Date(fields.triggeredAt)
      } else if (fields.type === 7) {
        data.amount = fields.amount
      }
      return Btp.serialize({ type: fields.type, requestId: fields.requestId, data })
    }
  },
  stream: {
    read (plaintext) {
      const packet = Stream.Packet._deserializeUnencrypted(plaintext)
      return {
        type: packet.ilpPacketType,
        sequence: packet.sequence.toString(),
        amount: packet.prepareAmount.toString(),
        frames: packet.frames.map(readFrame)
      }
    },
    write ({ type, sequence, amount, frames }) {
      return new Stream.Packet(sequence, type, amount, frames.map(writeFrame))._serialize()
    }
  }
}

function readProtocol ({ protocolName, contentType, data }) {
  return [protocolName, contentType, hex(data)]
}

// A frame is the list of its type and its fields, in their order on the wire.
function readFrame (frame) {
  const fields = Object.keys(frame).filter((name) => name !== 'type' && name !== 'name')
  return [frame.type, ...fields.map((name) => {
    const value = frame[name]
    if (Buffer.isBuffer(value)) return hex(value)
    return typeof value === 'object' ? value.toString() : value
  })]
}

function writeFrame ([type, ...fields]) {
  const name = Stream.FrameType[type]
  if (name === 'StreamData') fields[2] = bytes(fields[2])
  if (name === 'StreamReceipt') fields[1] = bytes(fields[1])
  return new Stream[`${name}Frame`](...fields)
}

async function aboutSealed ({ secret, plaintext, envelope }) {
  const key = await StreamCrypto.generatePskEncryptionKey(bytes(secret))
  const fulfillmentKey = await StreamCrypto.generateFulfillmentKey(bytes(secret))
  const fulfillment = await StreamCrypto.generateFulfillment(fulfillmentKey, bytes(envelope))
  let opened = null
  try {
    opened = hex(await StreamCrypto.decrypt(key, bytes(envelope)))
  } catch (error) {
    // It does not open; that is the answer.
  }
  return {
    opened,
    fulfillment: hex(fulfillment),
    condition: hex(await StreamCrypto.hash(fulfillment)),
    sealed: hex(await StreamCrypto.encrypt(key, bytes(plaintext)))
  }
}

async function answer (question) {
  if (question.protocol === 'sealed') return aboutSealed(question)
  const { read, write } = protocols[question.protocol]
  const answer = {}
  if (question.write !== undefined) answer.written = hex(write(question.write))
  if (question.read !== undefined) {
    try {
      answer.read = read(bytes(question.read))
    } catch (error) {
      answer.error = String(error.message)
    }
  }
  return answer
}

async function main () {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    process.stdout.write(JSON.stringify(await answer(JSON.parse(line))) + '\n')
  }
}

main()
