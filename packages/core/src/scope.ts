import { GradError } from './errors.ts'

/** What a scope tracks: tensors. Kept structural so that this file stands below the tensor class. */
export interface Scoped {
  kept: boolean
  readonly disposed: boolean
  release(by: string): void
  /** From now on nobody but the garbage collector watches over it. */
  adopt(): void
}

/** The temporaries of the innermost running scope, or null outside of all. */
let current: Scoped[] | null = null

/** The temporaries of the scopes around the innermost one, outermost first. */
const outerScopes: Scoped[][] = []

/** What all running scopes track. */
export const tracked = (): Scoped[] => [...outerScopes, current ?? []].flat()

/** Called by every new tensor, and for what outlives an inner scope. */
export function track(t: Scoped): void {
  if (current !== null) current.push(t)
  else t.adopt()
}

/** How many the innermost scope tracks. */
export const trackedSoFar = (): number => current?.length ?? 0

/** Takes out of the innermost scope what it tracks since there were so many. */
export const takeSince = (count: number): Scoped[] => current?.splice(count) ?? []

/** Frees what was collected. Kept tensors go to the scope around it, which hands them over at its end. */
export function drop(made: readonly Scoped[], by: string): void {
  for (const t of made) {
    if (!t.kept) t.release(by)
    else if (!t.disposed) track(t)
  }
}

/** Runs `fn` and returns what it made beside its result, instead of freeing it: the engine's own way to collect. */
export function collect<T>(fn: () => T): { result: T; made: Scoped[] } {
  const outer = current
  const made: Scoped[] = []
  if (outer !== null) outerScopes.push(outer)
  current = made
  try {
    return { result: fn(), made }
  } catch (error) {
    current = outer
    drop(made, 'an error in its scope')
    throw error
  } finally {
    current = outer
    if (outer !== null) outerScopes.pop()
  }
}

/**
 * Frees every temporary made inside `fn` but those in `live` of its result (and kept ones); survivors move to the
 * enclosing scope.
 */
export function runScope<T>(fn: () => T, live: (result: T) => Set<Scoped>): T {
  const { result, made } = collect(fn)
  if (result instanceof Promise) {
    drop(made, 'scope()')
    throw new GradError(
      'scope: the function returned a promise; a scope is synchronous. Compute inside it and await the reads outside',
    )
  }
  const alive = live(result)
  for (const t of made) {
    if (t.disposed) continue
    if (t.kept || alive.has(t)) track(t)
    else t.release('scope()')
  }
  return result
}
