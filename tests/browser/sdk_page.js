/**
 * Evaluated in a tab by sdk_page.py, behind the SDK's own file: the stock SDK over the JavaScript
 * client's socket, and what it says.
 *
 * @param {string} url
 * @param {string} token
 * @param {string} channel
 */
async (url, token, channel) => {
  const { ResumableWebSocket } = await import("/client/index.js");
  const client = new Centrifuge(url, { ...ResumableWebSocket.sdkOptions(), token });
  const subscription = client.newSubscription(channel, { recoverable: true });
  const events = [];
  const texts = [];
  for (const event of ["connecting", "connected", "disconnected"]) {
    client.on(event, ({ code = 0 }) => events.push([event, code]));
  }
  for (const event of ["subscribing", "subscribed", "unsubscribed"]) {
    subscription.on(event, ({ code = 0 }) => events.push([event, code]));
  }
  subscription.on("publication", ({ data, offset }) => {
    // Those without an offset say that somebody is typing.
    if (offset !== undefined) texts.push(data.text);
  });
  subscription.subscribe();
  client.connect();
  await subscription.ready();
  window.sdk = {
    events,
    texts,
    // The SDK gives up on its answer after 5 s, and the text is stored all the same.
    publish: (text) => void subscription.publish({ text }).catch(() => {}),
  };
}
