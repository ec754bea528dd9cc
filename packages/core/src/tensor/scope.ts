import { GradError } from '../errors.ts'

/** What a scope tracks: tensors. Kept structural so that this file stands below the tensor class. */
export interface Scoped {
  kept: boolean
  readonly disposed: boolean
  release(by: string): void
  /** Leaves the tensor to the garbage collector from now on. */
  adopt(): void
}

/** The temporaries of the innermost running scope, or null outside of all. */
let current: Scoped[] | null = null

/** The temporaries of the scopes around the innermost one, outermost first. */
const outerScopes: Scoped[][] = []

/** What all running scopes track. */
export const tracked = (): Scoped[] => [...outerScopes, current ?? []].flat()

/** Listens to what is made and by which operator; see `checkLeaks`. */
export interface Watcher {
  made(t: Scoped): void
  /** An operator has filled these. */
  filled(op: string, outputs: readonly object[]): void
}

let watcher: Watcher | null = null
export const watching = (): Watcher | null => watcher
export const setWatcher = (next: Watcher | null): void => {
  watcher = next
}

/** Called by every new tensor, and for what outlives an inner scope. */
export function track(t: Scoped): void {
  if (watcher !== null) watcher.made(t)
  if (current !== null) current.push(t)
  else t.adopt()
}

/** Whether any scope runs. */
export const inScope = (): boolean => current !== null

/** The number of tensors that the innermost scope tracks. */
export const trackedSoFar = (): number => current?.length ?? 0

/** The tensors after the first `count` of the innermost scope, which go on being the scope's, in case of an error. */
export const madeSince = (count: number): Scoped[] => current?.slice(count) ?? []

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

/** Runs `fn`, which decides what becomes of what was collected; if it throws, everything is freed. */
export function settled<T>(made: readonly Scoped[], fn: () => T): T {
  try {
    return fn()
  } catch (error) {
    drop(made, 'an error in its scope')
    throw error
  }
}

/**
 * Refuses the result of an asynchronous function. Its promise may be rejected, as its tensors are gone: that is of no
 * interest any more, and must not end the process.
 */
export function refuseAsync(op: string, result: unknown, fix: string): void {
  if ((typeof result !== 'object' && typeof result !== 'function') || result === null) return
  if (!('then' in result)) return
  if (typeof result.then !== 'function') return
  Promise.resolve(result).catch(() => {})
  throw new GradError(`${op}: the function returned a promise; ${fix}`)
}

/**
 * Frees every temporary made inside `fn` but those in `live` of its result (and kept ones); survivors move to the
 * enclosing scope.
 */
export function runScope<T>(fn: () => T, live: (result: T) => Set<Scoped>, by = 'scope()'): T {
  const { result, made } = collect(fn)
  const alive = settled(made, () => {
    refuseAsync('scope', result, 'a scope is synchronous. Compute inside it and await the reads outside')
    return live(result)
  })
  for (const t of made) {
    if (t.disposed) continue
    if (t.kept || alive.has(t)) track(t)
    else t.release(by)
  }
  return result
}
