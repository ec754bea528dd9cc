/**
 * Checks that V8's pairs of 128-bit instructions (level 'revectorized', an experimental flag) compute rightly.
 *
 * V8 has two compilers, and only the optimising one pairs. So every family of kernels is compiled twice when it is
 * first used: as it is, and optimised at once; run on small odd shapes, both must give the same bits. What passed is
 * the code that runs from then on, on all threads: V8 keeps code by the bytes of modules, and workers get it from
 * there. The tests hold the kernels themselves against core's reference; this is about V8 alone.
 */

import {
  type Backend,
  enableGrad,
  grad,
  type KernelTable,
  noGrad,
  OutOfMemoryError,
  profile,
  scope,
  type Tensor,
  type TypedArray,
  tensor,
  wrapKernels,
} from '@tilegrad/core'
import { uncaptured } from '@tilegrad/core/kernel'
import { type Sample, samples } from './kernels/table.ts'
import { optimizedAtOnce } from './machine/node.ts'

/** Pairs of instructions can be checked: `guard-none.ts`, which bundles for browsers get, says no. */
export const canCheck: boolean = true

/** Every lane differs, so that lanes that were mixed up show; signs, and values on both sides of 1. */
const fill = (n: number, seed: number): Float32Array =>
  Float32Array.from({ length: n }, (_, i) => 3 * Math.sin(1.7 * i + seed) + 0.01 * seed)

const families = new Map<string, Sample>(Object.entries(samples()))

/** The family of a kernel: with its gradient's it is one; nothing where nothing is computed that could go wrong. */
const familyOf = (name: string): Sample | undefined => families.get(name.replace(/Backward$/, ''))

/** Whether a kernel is checked before its first use. */
export const isGuarded = (name: string): boolean => familyOf(name) !== undefined

/** The bits of everything that a family computes, one result after the other. */
function compute(name: string, backend: Backend): TypedArray[] {
  const backward = name.endsWith('Backward')
  const family = familyOf(name) as Sample
  const make = (shape: readonly number[], seed: number): Tensor => {
    const data = fill(
      shape.reduce((p, n) => p * n, 1),
      seed,
    )
    return tensor(data, shape, { device: backend, requiresGrad: backward })
  }
  return scope(() => {
    const inputs = family.shapes.map(make)
    const result = family.run(inputs)
    const results = Array.isArray(result) ? (result as Tensor[]) : [result as Tensor]
    const wanted = backward
      ? grad(results, inputs, { gradOutputs: results.map((y, i) => make(y.shape, 10 + i).detach()) })
      : results
    return wanted.map((y) => y.contiguous().dataSync())
  })
}

/** Whether two engines agree bit by bit on a family; `other` is optimised at once. */
function agrees(name: string, plain: Backend, other: Backend): boolean {
  const run = (backend: Backend): TypedArray[] =>
    // Nobody's tape, nobody's profile, and no part of what is recorded.
    uncaptured(
      () =>
        profile(() => (name.endsWith('Backward') ? enableGrad : noGrad)(() => compute(name, backend))).result,
    )
  try {
    const want = run(plain)
    const got = optimizedAtOnce(() => {
      // In the first run the functions are compiled; the second one is optimised from its beginning.
      run(other)
      return run(other)
    })
    return want.every((w, r) => w.every((value, i) => Object.is(value, got[r]?.[i])))
  } catch (error) {
    if (error instanceof OutOfMemoryError) throw error
    return false
  }
}

/** How `guard` reaches kernels. */
export interface GuardOptions {
  /** The memory of both engines; its kernels do not matter. */
  readonly backend: Backend
  /** Kernels that are never optimised: of an engine that shares no code. */
  readonly plain: () => KernelTable
  /** The kernels to go on with after a failure; called at most once. */
  readonly fallback: (kernel: string) => KernelTable
}

/** A table whose kernels are checked at their first use, each once; after a failure it becomes the fallback. */
export function guard(table: KernelTable, { backend, plain, fallback }: GuardOptions): KernelTable {
  let plainTable: KernelTable | undefined
  const kernels: KernelTable = wrapKernels(table, (kernel, name, same) => {
    if (!isGuarded(name)) return kernel
    let checked = false
    const first: typeof kernel = {
      ...kernel,
      run(outputs, inputs, attrs, numbers) {
        if (!checked) {
          checked = true
          plainTable ??= plain()
          const right = agrees(name, { ...backend, kernels: plainTable }, { ...backend, kernels: table })
          Object.assign(kernels, right ? { [name]: kernel } : fallback(name))
        }
        same(kernels)?.run(outputs, inputs, attrs, numbers)
      },
    }
    return first
  })
  return kernels
}
