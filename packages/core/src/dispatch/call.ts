/** The one way to a kernel: every launch of every operator on every backend is a `Call`, and `run` runs it. */

import { running } from '../tensor/safety-net.ts'
import { watching } from '../tensor/scope.ts'
import type { Backend, View } from './backend.ts'
import type { KernelOf } from './kernels.ts'
import { paging } from './paging.ts'

/** One run of a kernel: the operator, where it runs, what it reads and writes, and what decides its code. */
export interface Call<A = unknown> {
  /** What profiles and errors call it. */
  readonly op: string
  /** A kernel of a whole operator, or a primitive. */
  readonly path: 'fused' | 'primitive'
  /** Where it runs. */
  readonly backend: Backend
  /** What runs. */
  readonly kernel: KernelOf<A>
  /** What is filled. */
  readonly outputs: readonly View[]
  /** What is read. */
  readonly inputs: readonly View[]
  /** What decides the kernel's code. */
  readonly attrs: A
  /** What differs from call to call. */
  readonly numbers: readonly number[]
  /** Counts its arithmetic operations, for profiles. */
  readonly flops?: Work<A> | undefined
}

/** The numbers of a call that has none. */
export const NO_NUMBERS: readonly number[] = []

/** Counts arithmetic operations. */
export type Work<A> = (inputs: readonly View[], attrs: A, outputs: readonly View[]) => number

/** Hears of every call while it is installed; a profile is one. */
export interface Listener {
  /** Runs the call by calling `go`, once. */
  call(call: Call, go: () => void): void
  /** A composed operator begins; what it returns is handed to `composed` when the operator ends. */
  begin(backend: Backend): unknown
  /** A composed operator has ended, which began with `begun`. */
  composed(op: string, backend: Backend, begun: unknown): void
}

let listener: Listener | null = null

/** Who listens, or null. */
export const listening = (): Listener | null => listener

/**
 * Installs a listener, or none with null.
 *
 * @returns who listened until now.
 * @example
 * import { listen } from '@tilegrad/core/kernel'
 *
 * const ops: string[] = []
 * const before = listen({
 *   call(call, go) {
 *     ops.push(call.op)
 *     go()
 *   },
 *   begin: () => null,
 *   composed: () => {},
 * })
 * ones([2]).exp()
 * listen(before)
 * ops.includes('exp') // → true
 */
export function listen(next: Listener | null): Listener | null {
  const before = listener
  listener = next
  return before
}

/**
 * Says whether a kernel takes these inputs, by their dtypes and then by all else.
 *
 * @example
 * import { takes } from '@tilegrad/core/kernel'
 *
 * takes({ dtypes: [['float32']], run: () => {} }, [ones([2]), zeros([1], { dtype: 'int32' })], {}) // → false
 */
export function takes<A>(kernel: KernelOf<A>, inputs: readonly View[], attrs: A): boolean {
  const { dtypes } = kernel
  if (dtypes)
    for (let i = 0; i < inputs.length; i++)
      if (!dtypes[Math.min(i, dtypes.length - 1)].includes(inputs[i].dtype)) return false
  return kernel.supports?.(inputs, attrs) ?? true
}

/** Runs a kernel. */
export function run<A>(call: Call<A>): void {
  if (listener === null) launch(call)
  else listener.call(call as Call, () => launch(call))
}

function launch<A>(call: Call<A>): void {
  const pager = paging()
  if (pager === null) go(call)
  else pager.launch(call as Call, () => go(call))
}

function go<A>({ op, kernel, outputs, inputs, attrs, numbers }: Call<A>): void {
  running.outputs = outputs
  running.inputs = inputs
  try {
    kernel.run(outputs, inputs, attrs, numbers)
    watching()?.filled(op, outputs)
  } finally {
    running.outputs = running.inputs = null
  }
}
