'use strict'
// One request with the unmodified `ilp-fetch`: its options are the argument (JSON, with `url`, and with
// `payToken` in base64 if it is to be that one). Prints what its user sees, as one JSON object.
const ilpFetch = require('ilp-fetch')

const { url, payToken, ...options } = JSON.parse(process.argv[2])
if (payToken) options.payToken = Buffer.from(payToken, 'base64')
const say = value => console.log(JSON.stringify(value))

ilpFetch(url, options)
  .then(async answer => say({
    status: answer.status,
    paid: answer.price,
    destination: answer.destination || null,
    body: await answer.json()
  }), error => say({ error: error.message }))
  .then(() => process.exit(0))
