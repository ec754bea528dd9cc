import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { loadModel } from '../src/model.ts'
import { killAll, program, type Started, start, startProcess } from './program.ts'

// Whatever happens to a run, and whenever: no result is lost.

const folder = mkdtempSync(join(tmpdir(), 'tiny-transformer-'))
const text = join(folder, 'text.txt')
let out = ''
let runs = 0
beforeAll(() => writeFileSync(text, 'she sells sea shells by the sea shore. '.repeat(100)))
beforeEach(() => {
  out = join(folder, `out-${runs++}`)
})
afterAll(() => {
  killAll()
  rmSync(folder, { recursive: true, force: true })
})

const small = (...more: string[]): string[] => [
  ...[
    '--data',
    text,
    '--out',
    out,
    '--layers',
    '1',
    '--width',
    '16',
    '--heads',
    '2',
    '--block',
    '16',
    '--batch',
    '4',
  ],
  ...['--eval-batches', '2', '--sample', '20', '--threads', '1', ...more],
]
const weights = (name = 'model.safetensors'): Buffer => readFileSync(join(out, name))
const load = (name = 'model.safetensors'): ReturnType<typeof loadModel> => loadModel(join(out, name))
const drafts = (): string[] => readdirSync(out).filter((name) => name.includes('draft'))
const endless = ['--steps', '100000000']

it('weights and what is needed to use them are one file', async () => {
  expect(
    (await start(small('--steps', '3', '--bias', '--attention', 'window', '--window', '5')).ended).code,
  ).toBe(0)
  const { model, description } = load()
  expect(description.alphabet.join('')).toBe(' .abehlorsty')
  expect(description).toMatchObject({
    corpus: 'text.txt',
    steps: 3,
    options: { width: 16, attention: 'window' },
  })
  expect(model.config).toMatchObject({ vocabSize: 12, embedDim: 16, bias: true, window: 5 })
  expect(readdirSync(out).sort()).toEqual(['loss.svg', 'model.safetensors', 'run.json', 'sample.txt'])
})

describe('a signal', () => {
  it.each(['SIGINT', 'SIGTERM', 'SIGHUP'] as const)(
    '%s while training keeps what was learned',
    async (signal) => {
      const { child, ended, prints } = start(small(...endless))
      await prints(/step 100\//)
      child.kill(signal)
      const { code, stdout, stderr } = await ended
      expect(stderr.replace(/.*a second signal ends at once\n/, '')).toBe('')
      expect(code).toBe(0)
      expect(stdout).toMatch(/Stopped after \d+ of 100000000 steps[\s\S]*What it writes now[\s\S]*Written:/)
      expect(load().description.steps).toBeGreaterThanOrEqual(100)
      expect(readdirSync(out).sort()).toEqual(['loss.svg', 'model.safetensors', 'run.json', 'sample.txt'])
    },
  )

  it('while evaluating ends the evaluation', async () => {
    const { child, ended, prints } = start(small(...endless, '--eval-every', '100', '--eval-batches', '2000'))
    await prints(/step 100\//)
    child.kill('SIGTERM')
    expect((await ended).code).toBe(0)
    expect(load().description.steps).toBeGreaterThanOrEqual(100)
  })

  it('while it writes ends the sample', async () => {
    const { child, ended, prints } = start(small('--steps', '3', '--sample', '9000000'))
    await prints(/nats per character/)
    // The weights come before all that can take long.
    expect(load().description.steps).toBe(3)
    child.kill('SIGINT')
    const { code, stdout } = await ended
    expect(code).toBe(0)
    expect(stdout).toMatch(/Written:/)
    const sample = readFileSync(join(out, 'sample.txt'), 'utf8')
    expect(sample.length).toBeLessThan(9_000_000)
    // The signal may come before the first character: then there is nothing to show.
    expect(stdout.includes('What it writes now')).toBe(sample !== '\n')
  })

  it('in an endless first step ends the run at once: there is nothing to keep', async () => {
    const { child, ended, prints } = start(small('--accumulate', '1000000000'))
    await prints(/held-out/)
    child.kill('SIGTERM')
    const { code, signal, stderr } = await ended
    expect([code, signal]).toEqual([null, 'SIGTERM'])
    expect(stderr).toBe('tiny-transformer: stopped before the first step was done; no file was touched\n')
    expect(readdirSync(out)).toEqual([])
  })

  it('that is the second ends the run at once', async () => {
    const { child, ended, prints } = start(small(...endless))
    await prints(/step 100\//)
    // Both reach it at once, however late this process comes to send the second.
    for (const name of ['SIGSTOP', 'SIGINT', 'SIGTERM', 'SIGCONT'] as const) child.kill(name)
    const { signal, stderr } = await ended
    expect(['SIGINT', 'SIGTERM']).toContain(signal)
    expect(stderr).toMatch(/ended at once; the last weights written are in .*checkpoint\.safetensors\n$/)
    expect(load('checkpoint.safetensors').description.steps).toBeGreaterThan(0)
    expect(drafts()).toEqual([])
  })
})

describe('a program that started it', () => {
  // As scripts/run.mjs does: hands on what it is told, by a channel that ends with it.
  const parent = `
const { spawn } = require('node:child_process')
const child = spawn(process.execPath, process.argv.slice(1), { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
child.on('message', ({ takesSignals }) => takesSignals && console.log('child ' + child.pid))
process.on('SIGTERM', () => child.send({ signal: 'SIGTERM' }))
child.on('exit', (code) => process.exit(code))
`
  const begin = (): Started => startProcess(['-e', parent, '--', program('main'), ...small(...endless)])

  it('hands its signals on', async () => {
    const { child, ended, prints } = begin()
    await prints(/step 100\//)
    child.kill('SIGTERM')
    expect((await ended).code).toBe(0)
    expect(load().description.steps).toBeGreaterThanOrEqual(100)
  })

  it('leaves nothing running when it is killed', async () => {
    const { child, prints, printed } = begin()
    await prints(/step 100\//)
    const pid = Number(/child (\d+)/.exec(printed())?.[1])
    process.kill(pid, 0)
    child.kill('SIGKILL')
    const runs = (): boolean => {
      try {
        // In a container nobody may be there to bury it.
        if (existsSync('/proc/self/stat')) return !/\) [ZX]/.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))
        return process.kill(pid, 0)
      } catch {
        return false
      }
    }
    while (runs()) await delay(50)
    expect(load().description.steps).toBeGreaterThanOrEqual(100)
  })
})

describe('results of an earlier run', () => {
  const all = (): Record<string, string> =>
    Object.fromEntries(
      ['loss.svg', 'model.safetensors', 'run.json', 'sample.txt'].map((name) => [
        name,
        readFileSync(join(out, name), 'latin1'),
      ]),
    )

  it('stay when the next run is killed, whose checkpoint loads', async () => {
    expect((await start(small('--steps', '2')).ended).code).toBe(0)
    const before = all()
    const { child, ended, prints } = start(small(...endless, '--width', '24'))
    await prints(/step 100\//)
    child.kill('SIGKILL')
    expect((await ended).signal).toBe('SIGKILL')
    expect(all()).toEqual(before)
    expect(load('checkpoint.safetensors').model.config.embedDim).toBe(24)
    // Nor is the checkpoint lost when a third run begins its own, or ends.
    const left = weights('checkpoint.safetensors')
    const third = start(small(...endless))
    await third.prints(/step 100\//)
    third.child.kill('SIGINT')
    expect((await third.ended).code).toBe(0)
    expect(weights('unfinished/checkpoint.safetensors').equals(left)).toBe(true)
    expect(existsSync(join(out, 'checkpoint.safetensors'))).toBe(false)
    // The first one's results have gone to a folder of their own: the third did not reach its end.
    for (const [name, content] of Object.entries(before))
      expect(readFileSync(join(out, 'earlier', name), 'latin1')).toBe(content)
    expect(drafts()).toEqual([])
  })

  it('stay when the next run is refused, or fails', async () => {
    expect((await start(small('--steps', '2')).ended).code).toBe(0)
    const before = all()
    for (const [more, expected] of [
      [['--width', '1000000'], 2],
      [['--data', out], 2],
      [['--lr', '1e30', '--steps', '50'], 1],
    ] as const) {
      const { code, stderr } = await start(small(...more)).ended
      expect(code).toBe(expected)
      expect(stderr.trim().split('\n')).toHaveLength(1)
      expect(all()).toEqual(before)
    }
    expect(load('checkpoint.safetensors').description.steps).toBeGreaterThan(0)
  })
})

it('a loss that is not finite ends the run, and the last good weights are kept', async () => {
  const { code, stdout, stderr } = await start(small('--lr', '1e30', '--steps', '50')).ended
  expect(stderr).toMatch(
    /^tiny-transformer: the loss became \w+ at step \d+; try a smaller --lr; the weights after step \d+, the last good ones, are in .*model\.safetensors\n$/,
  )
  expect(stdout).not.toContain('What it writes now')
  expect(code).toBe(1)
  const { model } = load()
  for (const t of Object.values(model.stateDict())) expect((await t.data()).every(Number.isFinite)).toBe(true)
})

describe.runIf(process.platform === 'linux')('no room', () => {
  it('for the output: the run goes on to its files', async () => {
    const { code, stderr } = await start(small('--steps', '3'), { shell: 'exec >/dev/full' }).ended
    expect(stderr).toBe(
      'tiny-transformer: the standard output cannot be written: ENOSPC; the run goes on, to its files\n',
    )
    expect(code).toBe(1)
    expect(readdirSync(out).sort()).toEqual(['loss.svg', 'model.safetensors', 'run.json', 'sample.txt'])
  })

  it('for the weights: one line, and what was there is there', async () => {
    expect((await start(small('--steps', '2')).ended).code).toBe(0)
    const before = weights()
    // Files of more than 64 KiB cannot be written, wherever.
    const { code, stderr } = await start(small('--steps', '2', '--width', '64'), { shell: 'ulimit -f 64' })
      .ended
    expect(stderr).toMatch(
      /^tiny-transformer: .*checkpoint\.safetensors \([\d,]+ bytes\) cannot be written: it is larger than files may be here \(EFBIG\); training goes on without\ntiny-transformer: .*model\.safetensors \([\d,]+ bytes\) cannot be written: .*\(EFBIG\)\n$/,
    )
    expect(code).toBe(1)
    expect(weights().equals(before)).toBe(true)
    expect(drafts()).toEqual([])
  })
})

it('nobody reads the output any more: the run goes on to its files', async () => {
  const { child, ended, prints } = start(small('--steps', '150'))
  await prints(/held-out/)
  child.stdout?.destroy()
  const { code, stderr } = await ended
  expect([code, stderr]).toEqual([0, ''])
  expect(load().description.steps).toBe(150)
})

describe('nanogpt', () => {
  it('keeps its weights as well, and when it is stopped', async () => {
    const args = small(...endless).filter((_, i, all) => all[i] !== '--sample' && all[i - 1] !== '--sample')
    const { child, ended, prints } = start(args, { name: 'nanogpt' })
    await prints(/step 100\//)
    child.kill('SIGINT')
    const { code, stdout } = await ended
    expect(code).toBe(0)
    expect(stdout).toMatch(
      /\d+ steps in [\d.]+ s \([\d.]+ ms a step\)\nvalidation loss over \d+ random batches: \d/,
    )
    expect(load().description.steps).toBeGreaterThanOrEqual(100)
    expect(readdirSync(out).sort()).toEqual(['model.safetensors', 'run.json'])
  })

  it.each([
    [[], /^nanogpt: --data FILE is needed/],
    [['--data', '/nowhere.txt'], /^nanogpt: --data \/nowhere\.txt: there is no such file/],
    [['--data', text, '--dataa', 'x'], /^nanogpt: unknown option '--dataa' \(Did you mean --data\?\)/],
    [
      ['--data', text, '--layers', '1000000000'],
      /^nanogpt: --layers 1000000000: .* at most --layers \d+ would fit/,
    ],
  ])('refuses %j in one line', async (args, message) => {
    const { code, stderr } = await start([...args, '--out', out], { name: 'nanogpt' }).ended
    expect(stderr).toMatch(message)
    expect(stderr.trim().split('\n')).toHaveLength(1)
    expect(code).toBe(2)
  })
})
