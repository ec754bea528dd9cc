/**
 * Loads the engine when it is first asked for: reading its third of a megabyte takes as long as reading all the rest, and
 * a program that computes on a GPU never needs it. `require` is what Node has for loading without waiting.
 */
import * as core from '@tilegrad/core'
import * as kernel from '@tilegrad/core/kernel'
import type * as entry from './entry.ts'
import * as errors from './errors.ts'

type Engine = (shared: typeof core, forKernels: typeof kernel, errorClasses: typeof errors) => typeof entry

let engine: typeof entry | undefined

function load(): typeof entry {
  const { createRequire } = process.getBuiltinModule('node:module')
  const make: Engine = createRequire(import.meta.url)('./engine.cjs')
  engine = make(core, kernel, errors)
  return engine
}

export const createCpuBackend: typeof entry.createCpuBackend = (...args) =>
  (engine ?? load()).createCpuBackend(...args)

export const createPeaks: typeof entry.createPeaks = (...args) => (engine ?? load()).createPeaks(...args)

/** The engine that Node loads has them. */
export const loadPackedProducts: typeof entry.loadPackedProducts = () => {}
