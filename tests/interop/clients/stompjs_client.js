// JavaScript, @stomp/stompjs over plain TCP: https://www.npmjs.com/package/@stomp/stompjs
'use strict';
const net = require('net');
const readline = require('readline');
const {Client, Versions} = require('@stomp/stompjs');

function fail(error) {
  console.error(String(error && error.stack || error));
  process.exit(1);
}

// The few members of a WebSocket that the library uses, over a TCP socket.
class TcpSocket {
  constructor(port) {
    this.url = `tcp://127.0.0.1:${port}`;
    this.readyState = 0;
    this.socket = net.connect(port, '127.0.0.1', () => { this.readyState = 1; this.onopen(); });
    this.socket.on('data', (data) => this.onmessage({data: new Uint8Array(data).buffer}));
    this.socket.on('error', (error) => this.onerror(error));
    this.socket.on('close', () => { this.readyState = 3; this.onclose({code: 1000}); });
  }
  send(data) { this.socket.write(typeof data === 'string' ? data : Buffer.from(data)); }
  close() { this.readyState = 2; this.socket.end(); }
  terminate() { this.socket.destroy(); }
}

function connect(then) {
  let leaving = false;
  const client = new Client({
    webSocketFactory: () => new TcpSocket(Number(process.env.STOMP_PORT)),
    forceBinaryWSFrames: true,
    reconnectDelay: 0,
    connectHeaders: {login: process.env.STOMP_LOGIN, passcode: process.env.STOMP_PASSCODE,
      ...(process.env.STOMP_VHOST ? {host: process.env.STOMP_VHOST} : {})},
    stompVersions: new Versions([process.env.STOMP_VERSION]),
    onConnect: () => then(client, () => {
      leaving = true;
      client.deactivate().then(() => process.stdout.write('', () => process.exit(0)));
    }),
    onStompError: (frame) => fail(`ERROR ${JSON.stringify(frame.headers)} ${frame.body}`),
    onWebSocketError: fail,
    onWebSocketClose: () => { if (!leaving) fail('the broker closed the connection'); },
  });
  client.activate();
}

function sendAll() {
  const letters = [];
  readline.createInterface({input: process.stdin})
    .on('line', (line) => letters.push(JSON.parse(line)))
    .on('close', () => connect((client, goodbye) => {
      let waiting = letters.length;
      letters.forEach((letter, number) => {
        const receipt = `send-${number}`;
        client.watchForReceipt(receipt, () => { if (--waiting === 0) goodbye(); });
        client.publish({destination: letter.destination, headers: {...letter.headers, receipt},
          binaryBody: new Uint8Array(Buffer.from(letter.body, 'base64'))});
      });
    }));
}

function receive(queue, count) {
  connect((client, goodbye) => {
    let left = count;
    client.subscribe(queue, (message) => {
      const body = Buffer.from(message.binaryBody).toString('base64');
      process.stdout.write(JSON.stringify({headers: message.headers, body}) + '\n');
      message.ack();
      if (--left === 0) goodbye();
    }, {ack: 'client-individual'});
  });
}

const [command, queue, count] = process.argv.slice(2);
if (command === 'send') sendAll(); else receive(queue, Number(count));
