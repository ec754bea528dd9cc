import { join } from 'node:path'
import { type Backend, data, isFloat, scope, Tensor, withBackend } from '@tilegrad/core'
import type { Module, StateDict } from '@tilegrad/nn'
import { bind } from './arguments.ts'
import { difference, type Tolerance } from './compare.ts'
import { type Entry, isTensor, readJson, Skip, type TensorEntry, Tensors } from './manifest.ts'
import { failed, type Outcome, PASSED, type Report, skipped } from './report.ts'
import { allowed, differentiate, mismatch } from './run-ops.ts'
import { type TorchModule, torchModuleOf } from './torch-modules.ts'

interface ModuleCase {
  readonly module: string
  readonly args: { readonly list: readonly Entry[] }
  readonly kwargs: Readonly<Record<string, Entry>>
  readonly training: boolean
  readonly state: Readonly<Record<string, TensorEntry>>
  readonly inputs: { readonly list: readonly Entry[] }
  readonly named: Readonly<Record<string, Entry>>
  readonly outputs: readonly TensorEntry[]
  /** Buffers after the call. */
  readonly after: Readonly<Record<string, TensorEntry>>
  readonly cotangents: readonly TensorEntry[]
  readonly grads: readonly (TensorEntry | null)[]
  readonly param_grads: Readonly<Record<string, TensorEntry | null>>
}

/** Runs the cases of `modules.json` whose name matches. */
export async function runModules(dir: string, backend: Backend, only: RegExp, report: Report): Promise<void> {
  const { cases } = readJson(join(dir, 'modules.json')) as { cases: readonly ModuleCase[] }
  const tensors = new Tensors(join(dir, 'modules.safetensors'), backend)
  for (const [i, c] of cases.entries()) {
    const name = `${c.module}.${i}`
    if (only.test(name)) report.add(name, await runCase(c, tensors, backend))
  }
}

async function runCase(c: ModuleCase, tensors: Tensors, backend: Backend): Promise<Outcome> {
  const row = torchModuleOf(c.module)
  if (!row) return skipped(`no module ${c.module} here`)
  let done: Computed | null = null
  try {
    done = withBackend(backend, () => scope(() => compute(c, row, tensors)))
    const why = await check(c, row, done, tensors)
    return why === null ? PASSED : failed(why)
  } catch (error) {
    if (error instanceof Skip) return skipped(error.message)
    return failed(error instanceof Error ? `${error.name}: ${error.message}` : String(error))
  } finally {
    for (const t of done?.live ?? []) t.dispose()
    done?.module.dispose()
  }
}

interface Computed {
  readonly module: Module
  readonly outputs: readonly Tensor[]
  readonly grads: readonly (Tensor | null)[]
  readonly live: readonly Tensor[]
}

const flat = (value: unknown): Tensor[] =>
  value instanceof Tensor ? [value] : Array.isArray(value) ? value.flatMap(flat) : []

function compute(c: ModuleCase, row: TorchModule, tensors: Tensors): Computed {
  const decoded = (entries: Readonly<Record<string, Entry>>, leaves: Tensor[]) =>
    Object.fromEntries(Object.entries(entries).map(([k, e]) => [k, tensors.decode(e, leaves)]))
  const args = c.args.list.map((e) => tensors.decode(e, []))
  const module = row.build(bind(c.module, row.signature, args, decoded(c.kwargs, [])))
  const state: StateDict = {}
  for (const [name, entry] of Object.entries(c.state))
    state[row.rename(name)] = tensors.decode(entry, []) as Tensor
  module.loadStateDict(state)
  module.train(c.training)
  const leaves: Tensor[] = []
  const inputs = c.inputs.list.map((e) => tensors.decode(e, leaves))
  const outputs = flat(row.call(module, inputs, decoded(c.named, [])))
  const params = new Map(module.namedParameters())
  const wanted = Object.keys(c.param_grads).map((name) => {
    const p = params.get(row.rename(name))
    if (!p) throw new Error(`there is no parameter ${row.rename(name)}`)
    return p
  })
  const cotangents = c.cotangents.map((e) => tensors.decode(e, []) as Tensor)
  const grads = cotangents.length > 0 ? differentiate(outputs, cotangents, [...leaves, ...wanted]) : []
  return { module, outputs, grads, live: [...outputs, ...grads, ...leaves].filter(isTensor) }
}

async function check(
  c: ModuleCase,
  row: TorchModule,
  { module, outputs, grads }: Computed,
  tensors: Tensors,
): Promise<string | null> {
  const compare = async (t: Tensor, want: TensorEntry, tolerance: Tolerance): Promise<string | null> =>
    mismatch(t, want) ??
    difference(await data(t), tensors.values(want.tensor), t.shape, allowed(t, tolerance))
  if (outputs.length !== c.outputs.length) return `${outputs.length} outputs; expected ${c.outputs.length}`
  for (const [i, want] of c.outputs.entries()) {
    const why = await compare(outputs[i], want, row.tolerance)
    if (why) return `output ${i}: ${why}`
  }
  const buffers = new Map(module.namedBuffers())
  for (const [name, want] of Object.entries(c.after)) {
    const buffer = buffers.get(row.rename(name))
    if (!buffer) return `there is no buffer ${row.rename(name)}`
    const why = await compare(buffer, want, row.tolerance)
    if (why) return `${name} afterwards: ${why}`
  }
  const wanted = [
    ...c.grads.map((g, i) => [`input ${i}`, g] as const),
    ...Object.entries(c.param_grads),
  ] as const
  for (const [i, [name, want]] of wanted.entries()) {
    if (want === null) continue
    const g = grads[i]
    if (!g) {
      if (tensors.values(want.tensor).every((v) => v === 0)) continue
      return `gradient of ${name}: there is none`
    }
    if (!isFloat(g.dtype)) return `gradient of ${name} is ${g.dtype}`
    const why = await compare(g, want, row.tolerance)
    if (why) return `gradient of ${name}: ${why}`
  }
  return null
}
