/**
 * `tidegate`: live, keyed state and events from a Tidegate gateway.
 *
 * Does: names what is public. Owns, knows: nothing. Keeps: whatever is not named here may change.
 */
export { Client, connect } from './client.js';
export type { ConnectOptions, EventsOptions, Keeper, Status, TokenSource, ViewOptions } from './client.js';
export type { EventItem } from './channel.js';
export { TidegateError } from './errors.js';
export type { Code, GatewayCode, OwnCode } from './errors.js';
export type { Events, View } from './handle.js';
export type { TransportName } from './ladder.js';
export type { Freshness, FreshnessState } from './lease.js';
export type { Platform } from './platform.js';
export type { Published, PublishOptions } from './publish.js';
export type { Change } from './rows.js';
export type { Schema } from './schema.js';
