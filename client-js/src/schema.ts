/**
 * Typed rows: a Standard Schema checks what comes.
 *
 * Does: makes a row's reader of a schema. Owns: nothing. Never knows: channels. Keeps: a row that the schema refuses is
 * reported and not shown; it harms no other row.
 */
import { TidegateError } from './errors.js';
import type { Parse } from './rows.js';

/** The part of the Standard Schema interface, version 1, that is used; Zod, Valibot, ArkType and others have it. */
export interface Schema<T = unknown> {
  readonly '~standard': {
    readonly version: 1;
    readonly vendor: string;
    readonly validate: (value: unknown) => Result<T> | Promise<Result<T>>;
    readonly types?: { readonly input: unknown; readonly output: T } | undefined;
  };
}

type Result<T> = { readonly value: T; readonly issues?: undefined } | { readonly issues: readonly { readonly message: string }[] };

/** Reads rows by the schema; `undefined` for one that it refuses. A schema that answers later is refused as well. */
export const parseBy = (schema: Schema | undefined, channel: string, report: (error: TidegateError) => void): Parse => {
  if (!schema) return (data) => data;
  return (data, row) => {
    let why: string;
    try {
      const result = schema['~standard'].validate(data);
      if (result instanceof Promise) why = 'its schema is asynchronous';
      else if (!result.issues) return result.value;
      else why = result.issues.map(({ message }) => message).join('; ');
    } catch (error) {
      why = String(error);
    }
    report(new TidegateError('bad_row', `row ${JSON.stringify(row)} of ${channel}: ${why}`));
    return undefined;
  };
};
