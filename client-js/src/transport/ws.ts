/**
 * Over WebSocket.
 *
 * Does: opens a socket, passes text on. Owns: the socket. Never knows: what the text says. Keeps: the token is no part of
 * the handshake, where a browser could not tell a refusal from a cut; the connection sends it as its first message.
 */
import { TidegateError } from '../errors.js';
import { type Open, closeEnd, thrownEnd } from './transport.js';

export const openWs: Open = ({ base, platform, ear }) => {
  const url = new URL('v1/ws', base);
  url.protocol = url.protocol.replace('http', 'ws');
  let socket: InstanceType<NonNullable<typeof platform.WebSocket>>;
  try {
    socket = new platform.WebSocket!(url.href, ['tidegate.v1.json']);
  } catch (error) {
    // A page's security policy, for example.
    const stop = platform.setTimer(() => ear.ended({ ...thrownEnd(error), blocked: true }), 0);
    return { close: stop };
  }
  socket.onmessage = ({ data }) => ear.message(data);
  socket.onclose = ({ code, reason }) => ear.ended(closeEnd(code, reason));
  // An error is always followed by a close; some runtimes throw where nobody listens.
  socket.onerror = () => {};
  return {
    send: (message) => {
      if (socket.readyState !== 1) throw new TidegateError('network', 'the socket is not open');
      socket.send(JSON.stringify(message));
    },
    close: () => {
      socket.onmessage = socket.onclose = null;
      try {
        socket.close(1000);
      } catch {
        // It is closed already.
      }
    },
  };
};
