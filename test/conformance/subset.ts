// Makes a small fixture directory of a full one: tsx test/conformance/subset.ts FULL_DIR OUT_DIR
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { readSafetensors, type StoredTensor, writeSafetensors } from '@tilegrad/nn'
import { type Entry, type OpCase, readJson } from './manifest.ts'
import { modelsIn } from './run-models.ts'

/** Cases per operator, and what is worth keeping of each kind, in bytes of tensors. */
const PER_OP = 4
const OP_BYTES = 7_000
const ATTENTION_BYTES = 100_000
/** Of the final weights: all that led there is checked by the losses before. */
const FINAL_BYTES = 10_000

/** Of a model's gradients: models made here have them all. */
const GRAD_BYTES = 1_000

const [from, to] = process.argv.slice(2)
if (!from || !to) throw new Error('usage: tsx test/conformance/subset.ts FULL_DIR OUT_DIR')
mkdirSync(to, { recursive: true })

const write = (stem: string, manifest: unknown, tensors: ReadonlyMap<string, StoredTensor>): void => {
  writeFileSync(join(to, `${stem}.json`), `${JSON.stringify(manifest)}\n`)
  writeFileSync(join(to, `${stem}.safetensors`), writeSafetensors(tensors))
}

const tensorsOf = (stem: string): ReadonlyMap<string, StoredTensor> =>
  readSafetensors(readFileSync(join(from, `${stem}.safetensors`))).tensors

/** The tensors an entry, or anything that holds entries, names. */
function names(e: unknown): string[] {
  if (typeof e !== 'object' || e === null) return []
  if ('tensor' in e && typeof e.tensor === 'string') return [e.tensor]
  return Object.values(e).flatMap(names)
}

const isView = (e: Entry): boolean => {
  if ('list' in e) return e.list.some(isView)
  if (!('tensor' in e)) return false
  let step = 1
  return e.shape.some((_, i) => {
    const d = e.shape.length - 1 - i
    const odd = e.shape[d] > 1 && e.strides[d] !== step
    step *= e.shape[d]
    return odd
  })
}

/** What a case is about, so that the cases chosen differ: dtype, memory layout, rank, arguments. */
function topic(c: OpCase): string {
  const dtype = 'tensor' in c.input ? `${c.input.dtype} ${c.input.shape.length}` : 'list'
  const plain = JSON.stringify([c.args, c.kwargs], (key, v) => (key === 'tensor' ? undefined : v))
  const kind = isView(c.input) ? 'view' : 'dense'
  return [dtype, kind, plain.replace(/"(shape|strides)":\[[^\]]*\]/g, '')].join(' ')
}

function chooseOps(): void {
  const { source, cases } = readJson(join(from, 'ops.json')) as { source: string; cases: OpCase[] }
  const stored = tensorsOf('ops')
  const size = (c: OpCase): number =>
    names(c).reduce((n, name) => n + (stored.get(name)?.bytes.length ?? 0), 0)
  const byOp = new Map<string, OpCase[]>()
  for (const c of cases) byOp.set(c.op, [...(byOp.get(c.op) ?? []), c])
  const chosen = [...byOp.values()].flatMap((all) => {
    const small = all.filter((c) => size(c) <= OP_BYTES)
    const seen = new Map<string, OpCase[]>()
    for (const c of small.length > 0 ? small : all.slice(0, 1))
      seen.set(topic(c), [...(seen.get(topic(c)) ?? []), c])
    // Spread over the topics, which come in the order of the samples: float first, then integers.
    const topics = [...seen.values()].map((same) => same[0])
    const step = Math.max(1, topics.length / PER_OP)
    return Array.from({ length: Math.min(PER_OP, topics.length) }, (_, i) => topics[Math.floor(i * step)])
  })
  const used = [...new Set(chosen.flatMap(names))]
  write('ops', { source, cases: chosen }, new Map(used.map((n) => [n, stored.get(n) as StoredTensor])))
}

function chooseAttention(): void {
  const cases = readJson(join(from, 'attention.json')) as { name: string }[]
  const stored = [...tensorsOf('attention')]
  const ofCase = (c: { name: string }) => stored.filter(([name]) => name.startsWith(`${c.name}.`))
  const chosen = cases.filter((c) => ofCase(c).reduce((n, [, t]) => n + t.bytes.length, 0) <= ATTENTION_BYTES)
  write('attention', chosen, new Map(chosen.flatMap(ofCase)))
}

if (existsSync(join(from, 'ops.json'))) chooseOps()
if (existsSync(join(from, 'attention.json'))) chooseAttention()
if (existsSync(join(from, 'trajectory.json'))) {
  const stored = [...tensorsOf('trajectory')]
  const kept = stored.filter(([name, t]) => !name.startsWith('final.') || t.bytes.length <= FINAL_BYTES)
  write('trajectory', readJson(join(from, 'trajectory.json')), new Map(kept))
}

for (const name of modelsIn(from)) {
  mkdirSync(join(to, name), { recursive: true })
  for (const file of ['config.json', 'model.safetensors'])
    copyFileSync(join(from, name, file), join(to, name, file))
  const kept = [...tensorsOf(join(name, 'golden'))].filter(
    ([tensor, t]) => !tensor.startsWith('grad.') || t.bytes.length <= GRAD_BYTES,
  )
  writeFileSync(join(to, name, 'golden.safetensors'), writeSafetensors(kept))
}
