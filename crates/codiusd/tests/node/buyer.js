'use strict'
// buyer URL MAX_PRICE TIMES: buys something by PUT with the unmodified ilp-fetch, again and again.
// Prints a line of JSON for each answer, and ends as a program does that has nothing more to do.
const ilpFetch = require('ilp-fetch')

const [url, maxPrice, times] = process.argv.slice(2)

async function main () {
  for (let time = 0; time < Number(times); time++) {
    const begin = Date.now()
    const answer = await ilpFetch(url, { method: 'PUT', maxPrice })
    await answer.text()
    console.log(JSON.stringify({ status: answer.status, paid: answer.price, millis: Date.now() - begin }))
  }
}

main().then(() => process.exit(0), error => {
  console.error(error)
  process.exit(1)
})
