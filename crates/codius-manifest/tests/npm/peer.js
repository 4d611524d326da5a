// Answers each line of standard input with what the original libraries say about it.
//
// In:  {"text": "<JSON text of a posted document>"} or {"value": "<JSON text of anything>"}
// Out: see the two functions below; one line for each.
'use strict'
const readline = require('readline')
const canonicalJson = require('canonical-json')
const { hashManifest, validateGeneratedManifest } = require('codius-manifest')
const { hashPrivateVars } = require('codius-manifest/src/common/crypto-utils.js')
const generatedSpec = require('codius-manifest/schemas/GeneratedManifestSpec.json')
const Joi = require('joi')
const Enjoi = require('enjoi')

// The host's schema is the tool's without descriptions of variables.
const hostSpec = JSON.parse(JSON.stringify(generatedSpec))
delete hostSpec.properties.manifest.properties.vars.additionalProperties.properties.description
const hostSchema = Enjoi(hostSpec)

function aboutValue (text) {
  const value = JSON.parse(text)
  return { canonical: canonicalJson(value), stringified: JSON.stringify(value), hash: hashManifest(value) }
}

function aboutDocument (text) {
  let document
  try {
    document = JSON.parse(text)
  } catch (_) {
    return { json: false }
  }
  const answer = { json: true, host: null }
  answer.tool = validateGeneratedManifest(document).map((error) => Object.entries(error)[0])
  const { error, value } = Joi.validate(document, hostSchema)
  if (!error) {
    const port = value.manifest.port
    const privateVars = value.private && value.private.vars
    answer.host = {
      hash: hashManifest(value.manifest),
      stringified: JSON.stringify(value.manifest),
      port: port === undefined ? null : String(Number(port)),
      privateHashes: privateVars ? hashPrivateVars(value) : {}
    }
  }
  return answer
}

readline.createInterface({ input: process.stdin }).on('line', (line) => {
  const { text, value } = JSON.parse(line)
  const answer = text === undefined ? aboutValue(value) : aboutDocument(text)
  process.stdout.write(JSON.stringify(answer) + '\n')
})
