/**
 * Benchmarks of the WebGPU engine beside its floors and PyTorch: see README.md. Runs as it is, and as one bundled file
 * on a host that has only Node, npm `webgpu` and a GPU.
 *
 * pnpm bench:gpu [--json FILE] [--only REGEX] [--runs N] [--no-peers] [--python FILE] [--steps N] [--toggles LIST] [--limits default] [--dawn NAME]
 *
 * `--dawn null --only 'per operator'` needs no GPU: what JavaScript and Dawn take for a step when nothing is computed.
 */
import { spawn } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { arch, cpus, type } from 'node:os'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { createWebGpuBackend } from '@tilegrad/backend-webgpu'
import { setDefaultBackend, tensor } from '@tilegrad/core'
import { GPT, generate, quantize } from '@tilegrad/nn'
import { median, type Target, type Timing } from './cpu/harness.ts'
import { compiledStep, gptStep } from './cpu/workloads.ts'
import { callsOfDispatch, createGpuPeaks, timed } from './gpu/harness.ts'
import { operatorsOf, workloads } from './gpu/workloads.ts'
import { digits } from './machine.ts'
import { gpts } from './peers/inputs.ts'

const { values: options } = parseArgs({
  options: {
    json: { type: 'string' },
    only: { type: 'string', default: '' },
    runs: { type: 'string', default: '7' },
    python: { type: 'string', default: 'python3' },
    'no-peers': { type: 'boolean', default: false },
    steps: { type: 'string', default: '10000' },
    toggles: { type: 'string', default: '' },
    limits: { type: 'string', default: 'all' },
    peer: { type: 'string' },
    dawn: { type: 'string' },
  },
})
const only = new RegExp(options.only, 'i')
const chosen = workloads.filter(([name]) => only.test(name))

/** All workloads in one process: starting CUDA takes seconds. */
async function torch(): Promise<Record<string, number | string>> {
  if (options['no-peers'] || chosen.length === 0) return {}
  const script = options.peer ?? fileURLToPath(new URL('peers/torch-gpu.py', import.meta.url))
  const child = spawn(options.python, [script, options.runs, ...chosen.map(([name]) => name)])
  let [out, err] = ['', '']
  child.stdout.on('data', (part) => {
    out += part
  })
  child.stderr.on('data', (part) => {
    err += part
  })
  await new Promise((done) => child.on('error', done).on('close', done))
  const lines = out.split('\n').filter((line) => line.startsWith('{'))
  if (lines.length === 0) {
    console.log(`no PyTorch with a GPU beside: ${err.trim().split('\n').at(-1) || out.trim()}`)
    return {}
  }
  return Object.assign({}, ...lines.map((line) => JSON.parse(line)))
}

interface Row {
  workload: string
  ms: number | null
  floorMs?: number | null
  best?: Timing['best']
  value?: number
  /** In the value's unit. */
  floorValue?: number
  unit?: string
  rate?: string
  target: string
  met: boolean | null
  peers: Record<string, number | string>
  error?: string
}
const rows: Row[] = []
const cells = (list: readonly string[]): string =>
  list.map((c, i) => (i === 0 ? c.padEnd(44) : c.padStart(i === 4 || i === 5 ? 18 : 10))).join(' ')

function report(row: Row): void {
  rows.push(row)
  if (options.json)
    writeFileSync(
      options.json,
      `${JSON.stringify({ machine, node: process.versions.node, rows }, null, 2)}\n`,
    )
  const { ms, target, met } = row
  const [amount, floor] = ms ? [ms, row.floorMs] : [row.value, row.floorValue]
  const share = amount && floor ? `${Math.round((100 * floor) / amount)} %` : ''
  const ours = row.error ? 'failed' : ms ? digits(ms) : `${digits(row.value ?? 0)} ${row.unit}`
  const peer = row.peers.torch
  const theirs = typeof peer === 'number' ? digits(peer) : (peer ?? '')
  const verdict = met === null ? '' : met ? 'yes' : 'NO'
  console.log(
    cells([row.workload, ours, floor ? digits(floor) : '', share, row.rate ?? '', target, verdict, theirs]),
  )
  if (row.error) console.log(`  ${row.error}`)
}

function judge(target: Target, { ms, floorMs }: Timing): Pick<Row, 'target' | 'met'> {
  const parts: [text: string, met: boolean][] = []
  if (target.ms) parts.push([`≤ ${digits(target.ms)} ms`, ms <= target.ms])
  if (target.share)
    parts.push([`≥ ${Math.round(100 * target.share)} % of floor`, (floorMs ?? 0) / ms >= target.share])
  const met = parts.length === 0 ? null : parts.every(([, met]) => met)
  return { target: parts.map(([text]) => text).join(', '), met }
}

const peers = await torch()
const toggles = Object.fromEntries(
  options.toggles
    .split(',')
    .filter(Boolean)
    .map((name) => (name.startsWith('-') ? [name.slice(1), false] : [name, true])),
)
const backend = await createWebGpuBackend({
  toggles,
  limits: options.limits === 'default' ? 'default' : 'all',
  ...(options.dawn && { backend: options.dawn }),
})
setDefaultBackend(backend)
const { engine } = backend
const { device } = engine
const compile = device.createComputePipeline.bind(device)
let compiled = { count: 0, ms: 0 }
device.createComputePipeline = (pipeline) => {
  const begin = performance.now()
  const made = compile(pipeline)
  const ms = performance.now() - begin
  compiled = { count: compiled.count + 1, ms: compiled.ms + ms }
  if (ms > 1000) console.log(`  ${(ms / 1000).toFixed(1)} s to compile a kernel of ${pipeline.label}`)
  return made
}
const context = { backend, peaks: createGpuPeaks(backend), runs: Number(options.runs) }
const computes = options.dawn !== 'null'
if (computes) await context.peaks.warmUp()
const machine = {
  machine: `${backend.gpu.adapterName}; ${cpus().length} × ${cpus()[0]?.model.trim()} (${arch()}), ${type()}, Node ${process.versions.node}`,
  ...(computes && {
    'TFLOP/s': digits(await context.peaks.flops()),
    'GB/s of a copy': digits(await context.peaks.copy(2 ** 29)),
  }),
}
for (const [name, value] of Object.entries(machine)) console.log(`${name}: ${value}`)
console.log(cells(['\nworkload', 'ms', 'floor', 'share', 'rate', 'target', 'met', 'torch']))

// First, while the heap is small.
if (only.test('training step A, per operator')) {
  const step = gptStep(gpts['training step A'])
  const once = () => step().dispose()
  // V8 goes on compiling for so long; training runs are longer.
  for (let i = 0; i < 1000; i++) {
    once()
    if (i % 8 === 0) await backend.finished()
  }
  const count = operatorsOf(once)
  const times: number[] = []
  for (let i = 0; i < 400; i++) {
    // As in training, the GPU is not waited for at every step.
    if (i % 8 === 0) await backend.finished()
    const begin = performance.now()
    once()
    engine.flush()
    times.push((1000 * (performance.now() - begin)) / count)
  }
  const value = median(times)
  const before = engine.counts.dispatches
  once()
  const dispatches = engine.counts.dispatches - before
  report({
    workload: 'training step A, per operator',
    ms: null,
    value,
    floorValue: ((await callsOfDispatch(backend)) * dispatches) / count,
    unit: 'µs',
    rate: `${count}, ${dispatches} dispatches`,
    target: '≤ 10 µs',
    met: value <= 10,
    peers: {},
  })
}

if (only.test('training step A, replayed, per dispatch')) {
  const step = compiledStep(gpts['training step A'])
  const once = () => step().dispose()
  for (let i = 0; i < 1000; i++) {
    once()
    if (i % 8 === 0) await backend.finished()
  }
  const before = engine.counts.dispatches
  once()
  const dispatches = engine.counts.dispatches - before
  const times: number[] = []
  for (let i = 0; i < 400; i++) {
    if (i % 8 === 0) await backend.finished()
    const begin = performance.now()
    once()
    engine.flush()
    times.push((1000 * (performance.now() - begin)) / dispatches)
  }
  report({
    workload: 'training step A, replayed, per dispatch',
    ms: null,
    value: median(times),
    floorValue: await callsOfDispatch(backend),
    unit: 'µs',
    rate: `${dispatches} dispatches`,
    target: '≤ 2 µs',
    met: median(times) <= 2,
    peers: {},
  })
}

/** What a model is made of before it decodes: name, tokens per second to reach, and how. */
const decoders: readonly [string, number, (model: GPT) => GPT][] = [
  ['decoding GPT-2 124M, batch 1', 1500, (model) => model],
  ['decoding GPT-2 124M, batch 1, float16', 2500, (model) => model.to('float16')],
  ['decoding GPT-2 124M, batch 1, bfloat16', 2500, (model) => model.to('bfloat16')],
  ['decoding GPT-2 124M, batch 1, 8 bits', 2500, (model) => quantize(model)],
  ['decoding GPT-2 124M, batch 1, 8 bits and float16', 2500, (model) => quantize(model.to('float16'))],
]
for (const [workload, target, make] of decoders.filter(([name]) => computes && only.test(name))) {
  const sizes = { numLayers: 12, numHeads: 12, embedDim: 768, blockSize: 1024, vocabSize: 50257 }
  const model = make(new GPT(sizes))
  const start = tensor([[1, 2, 3, 4]], { dtype: 'int32' })
  const count = 400
  const rates: number[] = []
  for (let i = 0; i < 4; i++) {
    const begin = performance.now()
    const tokens = await generate(model, start, { maxNewTokens: count }).tensor()
    await backend.finished()
    rates.push((1000 * count) / (performance.now() - begin))
    tokens.dispose()
  }
  model.dispose()
  // The first one compiles kernels.
  const value = median(rates.slice(1))
  report({
    workload,
    ms: null,
    value,
    unit: 'tokens/s',
    target: `≥ ${target.toLocaleString('en')}`,
    met: value >= target,
    peers: {},
  })
}

for (const [name, target, prepare] of chosen) {
  const theirs: Row['peers'] = peers[name] === undefined ? {} : { torch: peers[name] }
  try {
    const prepared = await prepare()
    const ours = await timed(prepared, context)
    prepared.dispose()
    const { flops, bytes } = prepared.work ?? {}
    const rate = bytes
      ? `${digits(bytes / ours.ms / 1e6)} GB/s`
      : flops
        ? `${digits(flops / ours.ms / 1e9)} TFLOP/s`
        : ''
    report({ workload: name, ...ours, rate, ...judge(target, ours), peers: theirs })
  } catch (error) {
    report({ workload: name, ms: null, target: '', met: false, peers: theirs, error: `${error}` })
  }
}

if (only.test('endurance')) {
  const steps = Number(options.steps)
  const step = gptStep(gpts['training step A'])
  const state = () => {
    const { created, usedBytes, usedBuffers, pooledBytes } = backend.stats()
    return { created, usedBytes, usedBuffers, pooledBytes }
  }
  let early = state()
  const begin = performance.now()
  for (let i = 0; i < steps; i++) {
    step().dispose()
    if (i % 20 === 0) await backend.finished()
    if (i === Math.min(200, steps >> 1)) early = state()
  }
  await backend.finished()
  const flat = JSON.stringify(state()) === JSON.stringify(early)
  report({
    workload: `endurance: ${steps} steps of A`,
    ms: null,
    value: (performance.now() - begin) / 1000,
    unit: 's',
    rate: `${early.created} buffers, ${(early.usedBytes / 2 ** 20).toFixed(1)} MiB`,
    target: 'buffers, bytes flat',
    met: flat,
    peers: {},
    ...(!flat && { error: `${JSON.stringify(early)} became ${JSON.stringify(state())}` }),
  })
}
console.log(`\n${compiled.count} kernels compiled in ${(compiled.ms / 1000).toFixed(1)} s`)
backend.close()
