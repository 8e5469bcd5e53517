// Lets tests drive the public JavaScript client. Each line of JSON on stdin is a call, answered by
// a line with the same id; events come as lines of their own. Ends with its input.

import { createInterface } from 'node:readline';
import { Centrifuge } from 'centrifuge';
import WebSocket from 'ws';

import { ResumableWebSocket } from '../../clients/js/src/index.js';

const CLIENT_EVENTS = [
  'connecting', 'connected', 'disconnected', 'error',
  'subscribing', 'subscribed', 'unsubscribed', 'publication', 'join', 'leave',
];
const SUBSCRIPTION_EVENTS = [
  'subscribing', 'subscribed', 'unsubscribed', 'publication', 'join', 'leave', 'error',
];

const clients = new Map();
const sockets = new Map();

function say(message) {
  process.stdout.write(`${JSON.stringify(message)}\n`);
}

function relay(emitter, names, source) {
  for (const name of names) {
    emitter.on(name, (context) => say({ source, event: name, context }));
  }
}

/** The SDK's options for a socket that outlives its network. */
function resumableOptions(source, options) {
  const Socket = ResumableWebSocket.with({ WebSocket, ...options });
  Socket.status.addEventListener('statechange', () => {
    const { state, rtt, quality, retryAt, error } = Socket.status;
    say({ source, event: 'line', context: { state, rtt, quality, retryAt, error } });
  });
  return Socket.sdkOptions();
}

/** The option for tokens that are asked for: each call gives the next one, at last the same. */
function getToken(tokens, source) {
  if (!tokens?.length) return {};
  return {
    getToken: async () => {
      say({ source, event: 'token', context: {} });
      return tokens.length > 1 ? tokens.shift() : tokens[0];
    },
  };
}

function subscriptionOf({ client, channel }) {
  return clients.get(client).getSubscription(channel);
}

const calls = {
  open({ client, url, token, tokens, resumable, options }) {
    const centrifuge = new Centrifuge(url, {
      ...(resumable ? resumableOptions(client, resumable) : { websocket: WebSocket }),
      minReconnectDelay: 50,
      maxReconnectDelay: 500,
      ...(token === null ? {} : { token }),
      ...getToken(tokens, client),
      ...options,
    });
    relay(centrifuge, CLIENT_EVENTS, client);
    clients.set(client, centrifuge);
  },
  connect({ client }) {
    clients.get(client).connect();
  },
  disconnect({ client }) {
    clients.get(client).disconnect();
  },
  publish({ client, channel, data }) {
    return clients.get(client).publish(channel, data);
  },
  rpc({ client, method, data }) {
    return clients.get(client).rpc(method, data);
  },
  new_subscription({ client, channel, tokens, options }) {
    const source = `${client}/${channel}`;
    const subscription = clients.get(client).newSubscription(channel, {
      minResubscribeDelay: 50,
      ...getToken(tokens, source),
      ...options,
    });
    relay(subscription, SUBSCRIPTION_EVENTS, source);
  },
  subscribe(target) {
    subscriptionOf(target).subscribe();
  },
  unsubscribe(target) {
    subscriptionOf(target).unsubscribe();
  },
  publish_to({ data, ...target }) {
    return subscriptionOf(target).publish(data);
  },
  presence(target) {
    return subscriptionOf(target).presence();
  },
  presence_stats(target) {
    return subscriptionOf(target).presenceStats();
  },
  history({ options, ...target }) {
    return subscriptionOf(target).history(options);
  },

  // The wire itself, through the `ws` package, for what the SDK has no word for.
  open_socket({ socket, url }) {
    const webSocket = new WebSocket(url);
    webSocket.on('message', (data) => say({ source: socket, event: 'message', context: `${data}` }));
    webSocket.on('close', (code, reason) => {
      say({ source: socket, event: 'close', context: { code, reason: `${reason}` } });
    });
    sockets.set(socket, webSocket);
    return new Promise((resolve, reject) => {
      webSocket.on('open', resolve);
      webSocket.on('error', reject);
    });
  },
  send({ socket, text }) {
    sockets.get(socket).send(text);
  },
};

async function answer(line) {
  const { id, call, ...request } = JSON.parse(line);
  try {
    say({ id, result: (await calls[call](request)) ?? null });
  } catch (error) {
    say({ id, error: { code: error?.code ?? -1, message: error?.message ?? String(error) } });
  }
}

const input = createInterface({ input: process.stdin });
input.on('line', answer);
input.on('close', () => process.exit(0));
