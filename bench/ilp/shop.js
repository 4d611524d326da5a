'use strict'
// A shop as the first Codius host was one: hapi with cog, paid over the Interledger connection that
// ILP_CREDENTIALS names. Ends when its standard input does.
const Hapi = require('@hapi/hapi')
const { HapiCog } = require('@sharafian/cog')

const PRICE = 1000

async function main () {
  const server = Hapi.server({ port: 0, host: '127.0.0.1' })
  await server.register(HapiCog)
  server.route({
    method: 'PUT',
    path: '/',
    handler: async request => {
      const stream = request.ilpStream()
      await stream.receiveTotal(PRICE)
      return { paid: PRICE }
    }
  })
  await server.start()
  process.stdin.resume()
  process.stdin.on('end', () => process.exit(0))
  console.log(JSON.stringify({ ports: [server.info.port] }))
}

main().catch(error => { console.error(error); process.exit(1) })
