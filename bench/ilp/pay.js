'use strict'
// Paid requests by ilp-fetch as it is, each over a new connection at the place that ILP_CREDENTIALS
// names. Usage: node pay.js URL REQUESTS. Prints the milliseconds of each but the first.
const fetch = require('ilp-fetch')

const [url, requests] = process.argv.slice(2)

async function main () {
  const millis = []
  for (let request = 0; request <= Number(requests); request++) {
    const begin = process.hrtime.bigint()
    const answer = await fetch(url, { method: 'PUT', maxPrice: '1000000', timeout: 60000 })
    const text = await answer.text()
    if (answer.status !== 200) throw new Error(`${url} answered ${answer.status}: ${text}`)
    if (!(Number(answer.price) > 0)) throw new Error(`nothing was paid: ${answer.price}`)
    if (request > 0) millis.push(Number(process.hrtime.bigint() - begin) / 1e6)
  }
  console.log(JSON.stringify({ millis }))
  process.exit(0)
}

main().catch(error => { console.error(error); process.exit(1) })
