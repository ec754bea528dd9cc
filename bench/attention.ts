/**
 * What every way to attend costs, against the length and in its surroundings: see README.md.
 *
 * pnpm bench:attention [--backend cpu|webgpu] [--json FILE] [--add] [--svg FILE] [--only REGEX] [--max-t N] [--seconds N] [--gib N] [--runs N] [--threads N]
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { availableParallelism, loadavg } from 'node:os'
import { parseArgs } from 'node:util'
import { manualSeed, setDefaultBackend } from '@tilegrad/core'
import { chart } from './attention/chart.ts'
import { crossings, fits, requirements } from './attention/growth.ts'
import { openMeter } from './attention/meter.ts'
import { type Part, projections, shares, steps, threads, throughput } from './attention/parts.ts'
import { B, check, D, H, type Row, sweep } from './attention/sweep.ts'
import { variants } from './attention/variants.ts'
import { digits, machineName } from './machine.ts'

const { values: options } = parseArgs({
  options: {
    backend: { type: 'string', default: 'cpu' },
    json: { type: 'string' },
    add: { type: 'boolean', default: false },
    svg: { type: 'string' },
    only: { type: 'string', default: '' },
    'max-t': { type: 'string', default: '65536' },
    seconds: { type: 'string', default: '30' },
    gib: { type: 'string', default: '3' },
    runs: { type: 'string', default: '7' },
    threads: { type: 'string', default: `${availableParallelism()}` },
  },
})
if (options.backend !== 'cpu' && options.backend !== 'webgpu')
  throw new Error(`--backend is cpu or webgpu, not ${options.backend}`)
const only = new RegExp(options.only, 'i')
const most = Number(options['max-t'])
const lengths = Array.from({ length: 9 }, (_, i) => 256 * 2 ** i).filter((t) => t <= most)
const limits = { seconds: Number(options.seconds), bytes: Number(options.gib) * 2 ** 30 }
const runs = Number(options.runs)

interface Report {
  machine: Record<string, string>
  node: string
  rows: Row[]
  parts: Part[]
}
const earlier: Report | null =
  options.add && options.json && existsSync(options.json)
    ? JSON.parse(readFileSync(options.json, 'utf8'))
    : null
const rows: Row[] = earlier?.rows ?? []
const parts: Part[] = earlier?.parts ?? []

manualSeed(1)
const meter = await openMeter(options.backend, Number(options.threads), runs)
setDefaultBackend(meter.backend)
const machine = {
  machine: machineName(),
  engine: meter.engine,
  shape: `B ${B}, H ${H}, D ${D}`,
  limits: `${options.seconds} s and ${options.gib} GiB for one execution`,
  'load before': digits(loadavg()[0]),
}
for (const [name, value] of Object.entries(machine)) console.log(`${name}: ${value}`)

/** After every row, so that a run that is interrupted leaves what it has. */
function save(): void {
  const report = {
    machine,
    node: process.versions.node,
    rows,
    parts,
    fits: fits(rows),
    crossings: crossings(rows),
    requirements: requirements(rows),
  }
  if (options.json) writeFileSync(options.json, `${JSON.stringify(report, null, 1)}\n`)
}

/** Puts in, in the place of what has the same key. */
function put<T>(list: T[], item: T, key: (item: T) => string): void {
  const at = list.findIndex((other) => key(other) === key(item))
  if (at === -1) list.push(item)
  else list[at] = item
  save()
}

const mib = (bytes: number): string => digits(bytes / 2 ** 20)
const cells = (list: readonly string[], first = 20): string =>
  list.map((c, i) => (i === 0 ? c.padEnd(first) : c.padStart(12))).join(' ')

const chosen = variants.filter(({ name }) => only.test(name) || only.test(`variant ${name}`))
if (chosen.length > 0) console.log(`\n${cells(['variant', 'mode', 'T', 'ms', 'MiB', 'path'])}`)
for (const variant of chosen) {
  try {
    await check(variant)
  } catch (error) {
    console.log(`${variant.name}: ${error}`)
    process.exitCode = 1
    continue
  }
  for (const mode of ['forward', 'training'] as const) {
    for await (const row of sweep(variant, mode, lengths, meter, limits)) {
      put(rows, row, ({ variant, mode, t }) => `${variant} ${mode} ${t}`)
      const measured = row.ms === null ? [row.note ?? '', ''] : [digits(row.ms), mib(row.bytes ?? 0)]
      console.log(cells([row.variant, row.mode, `${row.t}`, ...measured, row.path ?? '']))
    }
  }
}

const tables: Readonly<Record<string, () => AsyncGenerator<Part>>> = {
  shares: () =>
    shares(
      meter,
      lengths.filter((t) => t <= 16384),
    ),
  throughput: () => throughput(meter),
  projections: () => projections(meter),
  steps: () => steps(meter, 3 * runs),
  threads: () => threads(runs, options.backend === 'cpu' ? Number(options.threads) : 1),
}
let last = ''
for (const [name, measure] of Object.entries(tables)) {
  if (!only.test(name)) continue
  for await (const part of measure()) {
    put(parts, part, ({ table, name }) => `${table} ${name}`)
    const columns = Object.keys(part.values)
    if (part.table !== last) console.log(`\n${part.table}\n${['', ...columns].join(' | ')}`)
    last = part.table
    console.log([part.name, ...columns.map((c) => digits(part.values[c] ?? 0))].join(' | '))
  }
}

console.log(`\ngrowth: time and memory ∝ T^exponent`)
for (const fit of fits(rows))
  console.log(cells([fit.variant, fit.mode, fit.of, fit.exponent.toFixed(2), `${fit.from}–${fit.to}`]))
console.log('\nfaster than softmax from T on')
for (const { variant, mode, t } of crossings(rows))
  console.log(cells([variant, mode, t === null ? 'not measured' : t <= 256 ? '≤ 256' : `${t}`]))
console.log('')
for (const { what, value, target, met } of requirements(rows))
  if (value !== null) console.log(`${what}: ${value.toFixed(2)}, ${target}: ${met ? 'met' : 'NOT MET'}`)
save()
if (options.svg) writeFileSync(options.svg, await chart(rows, `Attention, ${meter.engine}: ${machine.shape}`))
await meter.close()
