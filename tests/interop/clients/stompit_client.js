// JavaScript, stompit: https://www.npmjs.com/package/stompit
'use strict';
const readline = require('readline');
const stompit = require('stompit');

function fail(error) {
  console.error(String(error && error.stack || error));
  process.exit(1);
}

function connect(then) {
  const headers = {host: process.env.STOMP_VHOST || 'localhost', login: process.env.STOMP_LOGIN, passcode: process.env.STOMP_PASSCODE,
    'accept-version': process.env.STOMP_VERSION, 'heart-beat': '0,0'};
  const options = {host: '127.0.0.1', port: Number(process.env.STOMP_PORT), connectHeaders: headers};
  stompit.connect(options, (error, client) => {
    if (error) fail(error);
    client.on('error', fail);
    then(client);
  });
}

function goodbye(client) {
  client.disconnect((error) => error ? fail(error) : process.stdout.write('', () => process.exit(0)));
}

function sendAll() {
  const letters = [];
  readline.createInterface({input: process.stdin})
    .on('line', (line) => letters.push(JSON.parse(line)))
    .on('close', () => connect((client) => {
      let waiting = letters.length;
      for (const letter of letters) {
        const body = Buffer.from(letter.body, 'base64');
        const headers = {...letter.headers, destination: letter.destination, 'content-length': body.length};
        const frame = client.send(headers, {onReceipt: () => { if (--waiting === 0) goodbye(client); }});
        frame.end(body);
      }
    }));
}

function receive(queue, count) {
  connect((client) => {
    let left = count;
    client.subscribe({destination: queue, ack: 'client-individual'}, (error, message) => {
      if (error) fail(error);
      const parts = [];
      message.on('data', (part) => parts.push(part));
      message.on('end', () => {
        const body = Buffer.concat(parts).toString('base64');
        process.stdout.write(JSON.stringify({headers: message.headers, body}) + '\n');
        client.ack(message);
        if (--left === 0) goodbye(client);
      });
    });
  });
}

const [command, queue, count] = process.argv.slice(2);
if (command === 'send') sendAll(); else receive(queue, Number(count));
