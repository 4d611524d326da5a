'use strict'
// Asks a BTP server everything that decides whether a client of one gets along with another, and
// prints the answers as one JSON object.
const crypto = require('crypto')
const btp = require('./btp')
const { sha256, prepare, fulfill, reject, frame, MESSAGE, RESPONSE, OCTET_STREAM } = btp

const url = 'ws://localhost:7768'
const PREIMAGE = Buffer.alloc(32, 5)
const CONDITION = sha256(PREIMAGE)
// How long something that should not come is waited for.
const SILENCE_MS = 300

const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))
const soon = ms => new Date(Date.now() + ms)
const within = (promise, ms) => Promise.race([promise, sleep(ms).then(() => 'nothing')])
const fresh = () => crypto.randomBytes(16).toString('hex')
const hashed = token => sha256(Buffer.from(token)).toString('base64')
  .replace(/\+/g, '-').replace(/\//g, '_').replace(/=/g, '')

const open = (token = fresh(), username) => new btp.Client(url).enter(token, username)

async function main () {
  const payer = await open()
  const payee = await open()
  const own = await payer.configuration()
  const to = (await payee.configuration()).address
  const connector = own.address.split('.').slice(0, 2).join('.')
  const parent = own.address.split('.').slice(0, -1).join('.')

  // An answer without what differs from one run to the next.
  function brief (answer) {
    if (answer === 'nothing' || answer.closed) return answer === 'nothing' ? 'nothing' : 'closed'
    if (answer.type === 'fulfill') {
      return `fulfill ${answer.fulfillment.equals(PREIMAGE) ? '' : 'wrong '}"${answer.data}"`
    }
    if (answer.type === 'reject') {
      const names = { [connector]: 'the connector', [to]: 'the payee', '': 'nobody' }
      return `reject ${answer.code} by ${names[answer.triggeredBy] || answer.triggeredBy}`
    }
    if (answer.type === btp.ERROR) return `BTP error ${answer.code} ${answer.name}`
    return `BTP response with [${Object.keys(answer.protocols)}]`
  }

  const packet = fields => prepare({ destination: to, condition: CONDITION, ...fields })
  const send = async fields => brief(await payer.send(packet(fields)))
  const raw = async bytes => brief(await payer.call(bytes))
  // What the payee gets of a packet.
  const seen = async fields => {
    let received
    payee.onPrepare = it => { received = it; return fulfill(PREIMAGE) }
    const answer = await send(fields)
    return { answer, received }
  }
  const answered = async (answer, fields) => {
    payee.onPrepare = answer
    return send(fields)
  }
  const withMessage = protocols => frame(MESSAGE, payer.id(), protocols)
  // What a connection that does something wrong gets, and whether it is still usable.
  async function misbehave (bytes) {
    const client = await open()
    client.frames.length = 0
    client.socket.send(bytes)
    await Promise.race([client.closed, sleep(SILENCE_MS)])
    const answers = client.frames.map(brief)
    return { answers, then: client.gone ? 'closed' : (await client.configuration()).code }
  }
  // What a connection gets that begins with something else than its name.
  async function introduce (bytes) {
    const client = await new btp.Client(url).connect()
    client.socket.send(bytes)
    await Promise.race([client.closed, sleep(SILENCE_MS)])
    return { answers: client.frames.map(brief), then: client.gone ? 'closed' : 'open' }
  }

  const cases = {
    'address of a token': async () => {
      const token = fresh()
      const { address } = await (await open(token)).configuration()
      return address.replace(parent, 'PARENT').replace(hashed(token), 'HASH')
    },
    'address of a user name': async () =>
      (await (await open(fresh(), 'alice')).configuration()).address.replace(parent, 'PARENT'),
    'the same token has the same address': async () => {
      const token = fresh()
      const [one, two] = [await (await open(token)).configuration(), await (await open(token)).configuration()]
      return one.address === two.address
    },
    asset: () => [own.code, own.scale],

    'a packet arrives as it was sent': async () => {
      const data = crypto.randomBytes(40)
      const { answer, received } = await seen({ amount: 1234, data })
      return [answer, received.amount, received.data.equals(data), received.condition.equals(CONDITION)]
    },
    'a packet below an address arrives': async () => {
      const { answer, received } = await seen({ destination: to + '.deep.er', data: 'below' })
      return [answer, received.destination.replace(to, 'PAYEE')]
    },
    'milliseconds taken off the expiry': async () => {
      const expires = soon(20000)
      const { received } = await seen({ expires, data: 'expiry' })
      return expires.getTime() - received.expires
    },
    'an expiry in ten minutes is made one in thirty seconds': async () => {
      const { received } = await seen({ expires: soon(600000), data: 'far' })
      const left = received.expires - Date.now()
      return left > 25000 && left <= 30000
    },
    'an amount of nothing': async () => (await seen({ data: 'nothing' })).received.amount,
    'the greatest amount': async () =>
      (await seen({ amount: (1n << 64n) - 1n, data: 'greatest' })).answer,
    'data of a Fulfill comes back': () => answered(() => fulfill(PREIMAGE, 'thanks'), { data: 'a' }),
    'a Reject comes back as it is': async () => {
      payee.onPrepare = () => reject('F99', to, 'no thanks', 'because')
      const { code, triggeredBy, message, data } = await payer.send(packet({ data: 'b' }))
      return [code, triggeredBy === to, message, data.toString()]
    },
    'a Reject without an address': () => answered(() => reject('T00'), { data: 'c' }),

    'expired already': () => send({ expires: soon(-1000), data: 'd' }),
    'less than a second left': () => send({ expires: soon(500), data: 'e' }),
    'less than a second left for the next': () => send({ expires: soon(1500), data: 'f' }),
    'enough time left': () => answered(() => fulfill(PREIMAGE), { expires: soon(4000), data: 'g' }),
    'a late answer': async () => {
      const start = Date.now()
      let late
      const answer = await answered(() => {
        late = sleep(3500).then(() => fulfill(PREIMAGE))
        return late
      }, { expires: soon(3000), data: 'h' })
      const took = Date.now() - start
      await late
      await sleep(SILENCE_MS)
      // The late answer does no harm.
      return [answer, took > 1500 && took < 3300, (await seen({ data: 'after' })).answer]
    },
    'a Fulfill that does not fit': () => answered(() => fulfill(Buffer.alloc(32, 6)), { data: 'i' }),
    'an answer that is no packet': () =>
      answered((_, id) => frame(RESPONSE, id, [['ilp', OCTET_STREAM, 'hello']]), { data: 'j' }),
    'a Prepare for an answer': () =>
      answered((_, id) => frame(RESPONSE, id, [['ilp', OCTET_STREAM, packet({})]]), { expires: soon(4000), data: 'k' }),
    'an answer without a packet': () => answered((_, id) => frame(RESPONSE, id, []), { data: 'l' }),
    'a BTP error for an answer': () =>
      answered((_, id) => btp.errorFrame(id, 'F00', 'NotAcceptedError', 'no'), { data: 'm' }),
    'the payee leaves instead of answering': async () => {
      const leaving = await open()
      const { address } = await leaving.configuration()
      leaving.onPrepare = () => { leaving.socket.close() }
      return send({ destination: address, expires: soon(4000), data: 'n' })
    },
    'a payee that has left': async () => {
      const gone = await open()
      const { address } = await gone.configuration()
      gone.socket.close()
      await gone.closed
      await sleep(SILENCE_MS)
      return send({ destination: address, data: 'o' })
    },

    'a child that there never was': () => send({ destination: parent + '.nobody', data: 'p' }),
    'a network that there is not': () => send({ destination: 'g.nobody', data: 'q' }),
    'the address of the connector': () => send({ destination: connector, data: 'r' }),
    'the address above the children': () => send({ destination: parent, data: 's' }),
    'the payer itself': () => send({ destination: own.address, data: 't' }),
    'an address that is none': () => send({ destination: 'private..x', data: 'u' }),
    'an address of one segment': () => send({ destination: 'private', data: 'v' }),
    'an address in another scheme': () => send({ destination: 'xyz.a', data: 'w' }),
    'an address that is too long': () => send({ destination: to + '.' + 'x'.repeat(1024), data: 'x' }),
    'a month 13': () => send({ expires: '20261301000000000', data: 'y' }),
    'an expiry that is no number': () => send({ expires: 'tomorrow-at-noon!', data: 'z' }),
    'configuration with another condition': () => send({ destination: 'peer.config' }),
    'another peer address': () => send({ destination: 'peer.other', data: 'aa' }),
    'routes of a child': () => send({ destination: 'peer.route.control', data: 'ab' }),

    'the same packet twice at once': async () => {
      let asked = 0
      payee.onPrepare = async () => { asked++; await sleep(200); return fulfill(PREIMAGE) }
      const same = packet({ data: 'twice' })
      const answers = await Promise.all([payer.send(same), payer.send(same)])
      return [...answers.map(brief), asked]
    },
    'a hundred packets at once': async () => {
      payee.onPrepare = async ({ data }) => { await sleep(data[0] % 7); return fulfill(PREIMAGE, data) }
      const numbers = Array.from({ length: 100 }, (_, at) => at)
      const answers = await Promise.all(numbers.map(at => payer.send(packet({ data: Buffer.from([at, 1]) }))))
      return answers.every((answer, at) => answer.data.equals(Buffer.from([at, 1])))
    },
    'as much data as is allowed': async () => (await seen({ data: crypto.randomBytes(32767) })).answer,
    'a Fulfill for a request': async () => brief(await payer.send(fulfill(PREIMAGE))),
    'a Reject for a request': async () => brief(await payer.send(reject('F00'))),
    'a packet of another type': async () => brief(await payer.send(Buffer.from([99, 1, 0]))),
    'a packet that is cut off': async () => brief(await payer.send(packet({}).slice(0, 60))),
    'a message without a packet': () => raw(withMessage([])),
    'a message with another protocol': () => raw(withMessage([['chat', btp.TEXT, 'hello']])),
    'a packet and another protocol': async () => {
      payee.onPrepare = () => fulfill(PREIMAGE)
      return raw(withMessage([['ilp', OCTET_STREAM, packet({ data: 'ac' })], ['chat', btp.TEXT, 'hello']]))
    },
    'a transfer': () => raw(frame(btp.TRANSFER, payer.id(), [], btp.uint64(5))),
    'a response that nobody waits for': () =>
      misbehave(frame(RESPONSE, 77, [['ilp', OCTET_STREAM, fulfill(PREIMAGE)]])),
    'an error that nobody waits for': () => misbehave(btp.errorFrame(77, 'F00', 'NotAcceptedError', 'x')),
    'a frame of another type': () => misbehave(frame(99, 77, [])),
    'a frame that is cut off': () => misbehave(frame(MESSAGE, 77, [['ilp', OCTET_STREAM, packet({})]]).slice(0, 40)),
    'text instead of a frame': () => misbehave('hello'),
    'a second introduction': () => misbehave(btp.auth(77, 'again')),

    'a request before the introduction': () => introduce(frame(MESSAGE, 1, [['ilp', OCTET_STREAM, packet({})]])),
    'an introduction without a token': () => introduce(frame(MESSAGE, 1, [['auth', OCTET_STREAM, '']])),
    'an empty token': () => introduce(btp.auth(1, '')),
    'a web page': async () => {
      const connected = new btp.Client(url).connect({ origin: 'https://example.com' })
      return connected.then(async page => {
        page.socket.send(btp.auth(1, fresh()))
        await Promise.race([page.closed, sleep(SILENCE_MS)])
        return page.frames.length > 0 ? 'let in' : 'kept out'
      }, () => 'kept out')
    },
    'a user name with another token': async () => {
      await open('first', 'bob')
      return open('second', 'bob').then(() => 'let in', () => 'kept out')
    },
    'a token whose hash is taken as a user name': async () => {
      const token = fresh()
      await open(fresh(), hashed(token))
      return open(token).then(() => 'let in', () => 'kept out')
    },
    'two connections with one token': async () => {
      const token = fresh()
      const both = [await open(token), await open(token)]
      const { address } = await both[1].configuration()
      let asked = 0
      for (const one of both) one.onPrepare = () => { asked++; return fulfill(PREIMAGE) }
      const answer = await send({ destination: address, data: 'ad' })
      await sleep(SILENCE_MS)
      return [answer, asked, both.map(it => it.gone ? 'closed' : 'open')]
    }
  }
  const results = { connector, 'where children are': parent.replace(connector, 'CONNECTOR') }
  for (const [name, probe] of Object.entries(cases)) {
    // No case may take longer than the connector holds a packet.
    results[name] = await within(Promise.resolve().then(probe).catch(error => `failed: ${error.stack}`), 40000)
    if (payer.gone || payee.gone) throw new Error(`a connection was lost in "${name}"`)
  }
  return results
}

main().then(result => {
  console.log(JSON.stringify(result))
  process.exit(0)
}, error => {
  console.error(error)
  process.exit(1)
})
