import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { AIRPORTS, airlineName, town } from '../places.js';

const lines = readFileSync(new URL('../../../deploy/demo/departures.ndjson', import.meta.url), 'utf8').trim().split('\n');
const rows = lines.map((line) => JSON.parse(line)).filter((record) => record.data);

test('every destination of the demonstration has a town that fits the board', () => {
  for (const { data } of rows) {
    const name = town(data.to, undefined);
    assert.notEqual(name, data.to, `${data.to} ${data.city}`);
    assert.ok(name.length <= 15, name);
  }
});

test('every airport and airline of the demonstration has a name', () => {
  assert.deepEqual([...new Set(rows.map(({ channel }) => channel))].sort(), Object.keys(AIRPORTS).sort());
  const airlines = new Set(rows.map(({ data }) => airlineName(data.airline)));
  for (const name of ['United', 'JetBlue', 'American', 'US Airways', 'Southwest', 'Virgin America', 'Envoy Air']) {
    assert.ok(airlines.has(name), `${name} in ${[...airlines].join(', ')}`);
  }
});

test('an unknown place is called what its row calls it', () => {
  assert.equal(town('ZZZ', 'Nowhere Intl'), 'Nowhere');
  assert.equal(town('ZZZ', undefined), 'ZZZ');
});
