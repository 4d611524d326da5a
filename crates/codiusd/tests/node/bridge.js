'use strict'
// Leads from a Unix socket to a TCP port of the network that this runs in.
const net = require('net')
const [path, port] = process.argv.slice(2)
net.createServer(near => {
  const far = net.connect(Number(port), '127.0.0.1')
  const end = () => { near.destroy(); far.destroy() }
  for (const side of [near, far]) side.on('error', end).on('close', end)
  near.pipe(far)
  far.pipe(near)
}).listen(path, () => console.log('bridge ready'))
