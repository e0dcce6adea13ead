/**
 * How long a token holds.
 *
 * Does: reads a JWT's own times. Owns: nothing. Never knows: whether the token is good. Keeps: only the difference of two
 * times in the token counts, never the time of day here, which may be wrong by hours.
 */

/** Milliseconds from its issue to its end; `null` where the token doesn't say. */
export function lifeOf(token: string): number | null {
  try {
    const claims = JSON.parse(atob(token.split('.')[1]!.replace(/-/g, '+').replace(/_/g, '/')));
    const life = (claims.exp - claims.iat) * 1000;
    return life > 0 ? life : null;
  } catch {
    return null;
  }
}
