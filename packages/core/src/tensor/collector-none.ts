/** What bundles for browsers get in place of `collector.ts`. */

/** @returns null: garbage is collected when the browser thinks of it. */
export const findCollector = (): null => null
