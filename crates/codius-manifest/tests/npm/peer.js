// Answers each line of standard input with what the original libraries say about it, one line each:
// {"value": "<JSON text of anything>"}, {"text": "<JSON text of a posted document>"}, or
// {"codius": "<text of codius.json>", "vars": "<text of codiusvars.json>"}.
'use strict'
const readline = require('readline')
const canonicalJson = require('canonical-json')
const fse = require('fs-extra')
const { generateManifest, hashManifest, validateGeneratedManifest } = require('codius-manifest')
const cryptoUtils = require('codius-manifest/src/common/crypto-utils.js')
const generatedSpec = require('codius-manifest/schemas/GeneratedManifestSpec.json')
const Joi = require('joi')
const Enjoi = require('enjoi')

// The host's schema is the tool's without descriptions of variables.
const hostSpec = JSON.parse(JSON.stringify(generatedSpec))
delete hostSpec.properties.manifest.properties.vars.additionalProperties.properties.description
const hostSchema = Enjoi(hostSpec)

// The "paths" given to generateManifest are the texts of the files, and its nonces are counted.
fse.readJson = async (text) => JSON.parse(text)
let nonces = 0
cryptoUtils.generateNonce = () => `nonce ${nonces++}`

function aboutValue (text) {
  const value = JSON.parse(text)
  return {
    canonical: canonicalJson(value),
    stringified: JSON.stringify(value),
    hash: hashManifest(value)
  }
}

function aboutDocument (text) {
  const document = JSON.parse(text)
  const answer = { host: null }
  answer.tool = validateGeneratedManifest(document).map((error) => Object.entries(error)[0])
  const { error, value } = Joi.validate(document, hostSchema)
  if (!error) {
    const port = value.manifest.port
    const hasPrivateVars = value.private && value.private.vars
    answer.host = {
      hash: hashManifest(value.manifest),
      stringified: JSON.stringify(value.manifest),
      port: port === undefined ? null : String(Number(port)),
      privateHashes: hasPrivateVars ? cryptoUtils.hashPrivateVars(value) : {}
    }
  }
  return answer
}

async function aboutSource (codius, vars) {
  nonces = 0
  try {
    const document = await generateManifest(vars, codius)
    return { generated: JSON.stringify(document) }
  } catch (error) {
    // Errors of the files' schemas are objects with a path; those of the result are finished.
    const list = JSON.parse(/errors:\s*(\[[\s\S]*\])$/.exec(error.message)[1])
    const finish = (one) => one.keyword
      ? [one.path, `schema is invalid. error=${JSON.stringify(one).replace(/"/g, "'")}`]
      : Object.entries(one)[0]
    return { errors: list.map(finish) }
  }
}

async function main () {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { value, text, codius, vars } = JSON.parse(line)
    const answer = value !== undefined
      ? aboutValue(value)
      : text !== undefined ? aboutDocument(text) : await aboutSource(codius, vars)
    process.stdout.write(JSON.stringify(answer) + '\n')
  }
}

main()
