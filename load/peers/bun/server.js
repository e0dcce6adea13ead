// GET /sub/N subscribes a WebSocket to channel N, POST /pub/N publishes the body to it: bun server.js PORT
const port = Number(process.argv[2]);

function channelOf(request) {
  return request.url.slice(request.url.lastIndexOf("/") + 1);
}

Bun.serve({
  hostname: "127.0.0.1",
  port,
  idleTimeout: 0,
  async fetch(request, server) {
    const channel = channelOf(request);
    if (request.method === "POST") {
      server.publish(channel, await request.text());
      return new Response();
    }
    if (server.upgrade(request, { data: channel })) return undefined;
    return new Response("GET /sub/N with an upgrade, or POST /pub/N", { status: 400 });
  },
  websocket: {
    perMessageDeflate: false,
    idleTimeout: 0,
    sendPings: false,
    open(socket) {
      socket.subscribe(socket.data);
    },
    message() {},
  },
});
