import type { Module } from '@tilegrad/nn'
import type { Arguments } from '../arguments.ts'
import { LOOSE, type Tolerance } from '../compare.ts'
import type { Value } from '../manifest.ts'

/** How a module of PyTorch is made and called here. */
export interface TorchModule {
  /** Names of the constructor's arguments, in PyTorch's order; see `bind`. */
  readonly signature: string
  build(a: Arguments): Module
  /** Calls the module; by default `forward` with the inputs in order. `named` are PyTorch's keyword arguments. */
  call(module: Module, inputs: readonly Value[], named: Readonly<Record<string, Value>>): unknown
  /** What outputs and gradients may differ by. */
  readonly tolerance: Tolerance
  /** Our name of a tensor of PyTorch's state dict. */
  rename(name: string): string
}

const table = new Map<string, TorchModule>()

type Forward = (...inputs: readonly unknown[]) => unknown

/** Adds a module under all its names. */
export function torchModule(
  names: string,
  signature: string,
  build: TorchModule['build'],
  {
    call = (m, inputs) => (m.forward as Forward)(...inputs),
    tolerance = LOOSE,
    rename = (name) => name,
  }: Partial<Pick<TorchModule, 'call' | 'tolerance' | 'rename'>> = {},
): void {
  for (const name of names.split(' ')) table.set(name, { signature, build, call, tolerance, rename })
}

export const torchModuleOf = (name: string): TorchModule | undefined => table.get(name)
