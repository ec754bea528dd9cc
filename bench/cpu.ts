/**
 * Benchmarks of the CPU engine beside its floors and its peers: see README.md.
 *
 * pnpm bench:cpu [--json FILE] [--only REGEX] [--threads N] [--runs N] [--peer-runs N] [--no-peers] [--python FILE] [--install-peers]
 */
import { execFile, execSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { availableParallelism, loadavg } from 'node:os'
import { fileURLToPath } from 'node:url'
import { parseArgs, promisify } from 'node:util'
import { createCpuBackend, createPeaks, type FeatureLevel } from '@tilegrad/backend-cpu'
import { scope, setDefaultBackend } from '@tilegrad/core'
import { figures, nanogpt } from './cpu/figures.ts'
import { deviation, median, type Target, type Timing, timed } from './cpu/harness.ts'
import { workloads } from './cpu/workloads.ts'
import { digits, machineName } from './machine.ts'

const { values: options } = parseArgs({
  options: {
    json: { type: 'string' },
    only: { type: 'string', default: '' },
    threads: { type: 'string', default: `${availableParallelism()}` },
    runs: { type: 'string', default: '7' },
    level: { type: 'string' },
    'peer-runs': { type: 'string' },
    python: { type: 'string', default: 'python3' },
    data: { type: 'string' },
    'no-peers': { type: 'boolean', default: false },
    'install-peers': { type: 'boolean', default: false },
  },
})
const folder = fileURLToPath(new URL('peers/', import.meta.url))
if (options['install-peers']) {
  execSync('npm install --no-package-lock --no-audit --no-fund', { cwd: folder, stdio: 'inherit' })
}

const peers: Readonly<Record<string, readonly [program: string, ...args: string[]]>> = {
  torch: [options.python, 'torch-peer.py'],
  // With Node's options as here: they load TypeScript.
  'jax-js': [process.execPath, ...process.execArgv, 'jax.mjs'],
  tfjs: [process.execPath, ...process.execArgv, 'tfjs.mjs'],
}
const absent = new Set<string>(options['no-peers'] ? Object.keys(peers) : [])
const run = promisify(execFile)
/** Seconds that a peer may take for one workload, with its start and its check. */
const patience = 180
/**
 * PyTorch's heap gives large blocks back to the system each time, and takes page faults for new ones; one that keeps them
 * makes it up to a third faster: see README.md. Nothing else listens to these.
 */
const env = { MALLOC_MMAP_THRESHOLD_: '4294967296', MALLOC_TRIM_THRESHOLD_: '4294967296', ...process.env }

/** One workload of one peer, in a process of its own; nothing where the peer has none or is not installed. */
async function ask(
  peer: string,
  workload: string,
): Promise<{ ms?: number; values?: number[]; error?: string }> {
  if (absent.has(peer)) return {}
  const [program, ...args] = peers[peer]
  try {
    const limits = { cwd: folder, timeout: 1000 * patience, killSignal: 'SIGKILL', env } as const
    const runs = options['peer-runs'] ?? options.runs
    const { stdout } = await run(program, [...args, workload, runs, options.threads], limits)
    const answer = JSON.parse(stdout.trim().split('\n').at(-1) ?? '')
    if (!/Cannot find|No module/.test(answer.error)) return answer
  } catch (error) {
    const { killed, code, message } = error as { killed?: boolean; code?: string; message: string }
    if (code !== 'ENOENT') return { error: killed ? `took over ${patience} s` : message }
  }
  absent.add(peer)
  return {}
}

interface Row {
  workload: string
  ms: number | null
  floorMs?: number | null
  best?: Timing['best']
  value?: number
  unit?: string
  target: string
  met: boolean | null
  /** Milliseconds, or what went wrong. */
  peers: Record<string, number | string>
  error?: string
}
const rows: Row[] = []
const cells = (list: readonly string[]): string =>
  list.map((c, i) => (i === 0 ? c.padEnd(40) : c.padStart(i === 4 ? 24 : 10))).join(' ')

/** After every row, so that a run that is interrupted leaves what it has. */
function save(): void {
  const text = JSON.stringify({ machine, node: process.versions.node, level: backend.level, rows }, null, 2)
  if (options.json) writeFileSync(options.json, `${text}\n`)
}

function report(row: Row): void {
  rows.push(row)
  save()
  const { ms, floorMs, target, met } = row
  const share = ms && floorMs ? `${Math.round((100 * floorMs) / ms)} %` : ''
  const ours = row.error ? 'failed' : ms ? digits(ms) : `${digits(row.value ?? 0)} ${row.unit}`
  const theirs = Object.keys(peers).map((peer) => row.peers[peer] ?? '')
  const others = theirs.map((answer) => (typeof answer === 'number' ? digits(answer) : answer && 'failed'))
  const verdict = met === null ? '' : met ? 'yes' : 'NO'
  console.log(cells([row.workload, ours, floorMs ? digits(floorMs) : '', share, target, verdict, ...others]))
  for (const [who, problem] of Object.entries({ ours: row.error, ...row.peers }))
    if (typeof problem === 'string') console.log(`  ${who}: ${problem}`)
}

function judge(target: Target, { ms, floorMs }: Timing, theirs: Row['peers']): Pick<Row, 'target' | 'met'> {
  const parts: [text: string, met: boolean][] = []
  if (target.ms) parts.push([`≤ ${digits(target.ms)} ms`, ms <= target.ms])
  if (target.share) parts.push([`≥ ${100 * target.share} % of floor`, (floorMs ?? 0) / ms >= target.share])
  for (const [peer, factor] of Object.entries(target.peers ?? {})) {
    const time = theirs[peer]
    const bound = factor < 1 ? `${peer} / ${1 / factor}` : `${factor.toFixed(1)} × ${peer}`
    if (typeof time === 'number') parts.push([`≤ ${bound}`, ms <= factor * time])
  }
  const met = parts.length === 0 ? null : parts.every(([, met]) => met)
  // Of several, which of them it is that misses.
  const text = parts.map(([text, met]) => (parts.length > 1 && !met ? `✗ ${text}` : text))
  return { target: text.join(', '), met }
}

const level = options.level as FeatureLevel | undefined
const backend = createCpuBackend({ threads: Number(options.threads), ...(level && { level }) })
await backend.ready()
setDefaultBackend(backend)
const context = { backend, peaks: createPeaks(backend), runs: Number(options.runs) }
const sample = (measure: () => number): string => digits(median(Array.from({ length: 9 }, measure)))
const wide = backend.level === 'revectorized'
const machine = {
  machine: machineName(),
  engine: `${backend.threads} threads, ${backend.level} (${wide ? 256 : 128} bits)`,
  'GFLOP/s': sample(() => context.peaks.flops()),
  'GB/s of a copy': sample(() => context.peaks.copy(2 ** 28)),
  'of reading memory': sample(() => context.peaks.read(2 ** 27)),
  'of reading caches': sample(() => context.peaks.read(2 ** 20)),
  'load before': digits(loadavg()[0]),
}
for (const [name, value] of Object.entries(machine)) console.log(`${name}: ${value}`)
console.log(cells(['\nworkload', 'ms', 'floor', 'share', 'target', 'met', ...Object.keys(peers)]))

const only = new RegExp(options.only, 'i')
const times = new Map<string, number>()
for (const [name, target, prepare] of workloads.filter(([name]) => only.test(name))) {
  let ours: Timing | undefined
  let truth: number[] | undefined
  let error = ''
  try {
    // Everything is synchronous and in one scope, which frees the inputs.
    ours = scope(() => {
      const prepared = prepare()
      truth = prepared.values()
      return timed(prepared, context)
    })
    times.set(name, ours.ms)
  } catch (e) {
    error = `${e}`
  }
  const theirs: Row['peers'] = {}
  for (const peer of Object.keys(peers)) {
    const { ms, values, error: failure } = await ask(peer, name)
    // Ours have been checked. Theirs may be approximations: a thousandth passes.
    const off = truth && values ? deviation(values, truth) : 0
    if (failure) theirs[peer] = failure
    else if (!(off < 1e-3)) theirs[peer] = `wrong by ${off} of the largest value`
    else if (ms) theirs[peer] = ms
  }
  const verdict = ours ? judge(target(wide), ours, theirs) : { target: '', met: false }
  report({ workload: name, ms: null, ...ours, ...verdict, peers: theirs, ...(error && { error }) })
}
const chosen = options.only === 'nanogpt' && options.data ? [nanogpt(options.data)] : figures
for (const figure of chosen.filter(({ name }) => only.test(name))) {
  try {
    const result = await figure.measure(context, times)
    if (result) report({ workload: figure.name, ms: null, ...result, peers: {} })
  } catch (e) {
    report({ workload: figure.name, ms: null, target: '', met: false, peers: {}, error: `${e}` })
  }
}
if (absent.size > 0 && !options['no-peers'])
  console.log(`\nnot installed: ${[...absent].join(', ')} (see bench/README.md)`)
await backend.close()
