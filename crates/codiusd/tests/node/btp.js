'use strict'
// The least of OER, ILPv4 and BTP 2.0 (RFCs 30, 27, 23) that is needed to send what no library would
// send, and a client over the `ws` package that shows what comes back as it is.
const crypto = require('crypto')
const WebSocket = require('ws')

const sha256 = bytes => crypto.createHash('sha256').update(bytes).digest()
const timestamp = date => date.toISOString().replace(/[-:.TZ]/g, '')
const fromTimestamp = text => Date.parse(text.replace(
  /^(....)(..)(..)(..)(..)(..)(...)$/, '$1-$2-$3T$4:$5:$6.$7Z'))

function octets (content) {
  const bytes = Buffer.from(content)
  if (bytes.length < 128) return Buffer.concat([Buffer.from([bytes.length]), bytes])
  const length = Buffer.alloc(4)
  length.writeUInt32BE(bytes.length)
  const significant = length.slice(length.findIndex(byte => byte !== 0))
  return Buffer.concat([Buffer.from([0x80 + significant.length]), significant, bytes])
}

function readOctets (bytes, at) {
  let length = bytes[at++]
  if (length > 127) {
    let digits = length & 127
    for (length = 0; digits > 0; digits--) length = length * 256 + bytes[at++]
  }
  if (at + length > bytes.length) throw new Error('octet string is cut off')
  return [bytes.slice(at, at + length), at + length]
}

function uint64 (value) {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64BE(BigInt(value))
  return bytes
}

// `expires` is a Date, or text that is written as it is.
function prepare ({ amount = 0, expires, condition, destination, data = '' }) {
  const when = expires === undefined ? new Date(Date.now() + 20000) : expires
  return Buffer.concat([Buffer.from([12]), octets(Buffer.concat([
    uint64(amount), Buffer.from(typeof when === 'string' ? when : timestamp(when)), condition,
    octets(destination), octets(data)]))])
}

const fulfill = (fulfillment, data = '') =>
  Buffer.concat([Buffer.from([13]), octets(Buffer.concat([fulfillment, octets(data)]))])

const reject = (code, triggeredBy = '', message = '', data = '') =>
  Buffer.concat([Buffer.from([14]), octets(Buffer.concat([
    Buffer.from(code), octets(triggeredBy), octets(message), octets(data)]))])

function readIlp (packet) {
  const [content] = readOctets(packet, 1)
  let at
  switch (packet[0]) {
    case 12: {
      const [destination, after] = readOctets(content, 57)
      const [data] = readOctets(content, after)
      return {
        type: 'prepare',
        amount: String(content.readBigUInt64BE(0)),
        expires: fromTimestamp(content.slice(8, 25).toString()),
        condition: content.slice(25, 57),
        destination: destination.toString(),
        data
      }
    }
    case 13: return { type: 'fulfill', fulfillment: content.slice(0, 32), data: readOctets(content, 32)[0] }
    case 14: {
      const reply = { type: 'reject', code: content.slice(0, 3).toString() }
      for (const field of ['triggeredBy', 'message']) {
        [reply[field], at] = readOctets(content, at === undefined ? 3 : at)
        reply[field] = reply[field].toString()
      }
      reply.data = readOctets(content, at)[0]
      return reply
    }
    default: throw new Error('no ILP packet: ' + packet.toString('hex'))
  }
}

const RESPONSE = 1
const ERROR = 2
const MESSAGE = 6
const TRANSFER = 7
const OCTET_STREAM = 0
const TEXT = 1

// `head` is what comes before the protocols: the amount of a Transfer, the fields of an Error.
function frame (type, requestId, protocols, head = Buffer.alloc(0)) {
  const start = Buffer.alloc(5)
  start[0] = type
  start.writeUInt32BE(requestId, 1)
  const encoded = protocols.map(([name, contentType, data]) =>
    Buffer.concat([octets(name), Buffer.from([contentType]), octets(data)]))
  return Buffer.concat([start,
    octets(Buffer.concat([head, Buffer.from([1, protocols.length]), ...encoded]))])
}

const errorFrame = (requestId, code, name, text) => frame(ERROR, requestId, [], Buffer.concat([
  Buffer.from(code), octets(name), octets(new Date().toISOString().replace(/[-:T]/g, '')), octets(text)]))

function readFrame (bytes) {
  const read = { type: bytes[0], requestId: bytes.readUInt32BE(1), protocols: {} }
  const [content] = readOctets(bytes, 5)
  let at = 0
  if (read.type === ERROR) {
    read.code = content.slice(0, 3).toString()
    at = 3
    for (const field of ['name', 'triggeredAt', 'data']) {
      [read[field], at] = readOctets(content, at)
      read[field] = read[field].toString()
    }
  } else if (read.type === TRANSFER) {
    at = 8
  }
  let left = content[at + 1]
  for (at += 2; left > 0; left--) {
    let name, data
    [name, at] = readOctets(content, at);
    [data, at] = readOctets(content, at + 1)
    read.protocols[name.toString()] = data
  }
  return read
}

const auth = (requestId, token, username) => frame(MESSAGE, requestId, [
  ['auth', OCTET_STREAM, ''],
  ...(username === undefined ? [] : [['auth_username', TEXT, username]]),
  ['auth_token', TEXT, token]])

// A client whose requests are answered by `onPrepare`: a packet, a whole frame, or undefined for no answer.
class Client {
  constructor (url) {
    Object.assign(this, { url, lastId: 0, waiting: new Map(), frames: [] })
    this.onPrepare = () => reject('F99')
  }

  // Connects without saying who it is.
  connect (options = {}) {
    return new Promise((resolve, reject) => {
      this.socket = new WebSocket(this.url, options)
      this.closed = new Promise(resolve => this.socket.on('close', resolve))
      this.closed.then(() => {
        this.gone = true
        for (const answer of this.waiting.values()) answer({ closed: true })
        this.waiting.clear()
      })
      this.socket.on('error', reject)
      this.socket.on('message', bytes => this.receive(Buffer.from(bytes)))
      this.socket.on('open', () => resolve(this))
    })
  }

  async enter (token, username) {
    await this.connect()
    const answer = await this.call(auth(this.id(), token, username))
    if (answer.type !== RESPONSE) throw new Error('not let in: ' + (answer.data || 'closed'))
    return this
  }

  receive (bytes) {
    const received = readFrame(bytes)
    this.frames.push(received)
    if (received.type === MESSAGE) return this.answer(received)
    const answer = this.waiting.get(received.requestId)
    this.waiting.delete(received.requestId)
    if (answer) answer(received)
  }

  async answer ({ requestId, protocols }) {
    const packet = await this.onPrepare(readIlp(protocols.ilp), requestId)
    if (packet === undefined || this.gone) return
    this.socket.send(packet[0] > 11 ? frame(RESPONSE, requestId, [['ilp', OCTET_STREAM, packet]]) : packet)
  }

  id () { return ++this.lastId }

  call (bytes) {
    if (this.gone) return Promise.resolve({ closed: true })
    return new Promise(resolve => {
      this.waiting.set(bytes.readUInt32BE(1), resolve)
      this.socket.send(bytes)
    })
  }

  // Sends a packet and gives the ILP reply, or the BTP frame if there is none in it.
  async send (packet) {
    const answer = await this.call(frame(MESSAGE, this.id(), [['ilp', OCTET_STREAM, packet]]))
    return answer.protocols && answer.protocols.ilp ? readIlp(answer.protocols.ilp) : answer
  }

  async configuration () {
    const { data } = await this.send(prepare({ destination: 'peer.config', condition: sha256(Buffer.alloc(32)) }))
    const [address, at] = readOctets(data, 0)
    return { address: address.toString(), scale: data[at], code: readOctets(data, at + 1)[0].toString() }
  }
}

module.exports = {
  sha256, octets, uint64, prepare, fulfill, reject, frame, errorFrame, auth, Client, WebSocket, RESPONSE, ERROR, MESSAGE, TRANSFER, OCTET_STREAM, TEXT
}
