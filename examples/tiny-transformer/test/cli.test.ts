import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { attentionKinds } from 'tilegrad'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { killAll, program, start } from './program.ts'

const folder = mkdtempSync(join(tmpdir(), 'tiny-transformer-'))
const out = join(folder, 'out')
const text = join(folder, 'text.txt')

beforeAll(() => {
  if (!existsSync(program('main'))) throw new Error('the example is not built; run `pnpm build` first')
  writeFileSync(text, 'she sells sea shells by the sea shore. '.repeat(100))
})
afterAll(() => {
  killAll()
  rmSync(folder, { recursive: true, force: true })
})

const small = [
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
  '--eval-batches',
  '2',
  '--sample',
  '20',
]

describe('bad input: one clear line, exit code 2', () => {
  const cases: [string, string[], RegExp][] = [
    ['a missing file', ['--data', join(folder, 'nowhere.txt')], /no such file/],
    ['a folder', ['--data', folder], /is a folder/],
    ['an empty file', ['--data', join(folder, 'empty.txt')], /is empty/],
    ['a file shorter than a block', ['--data', join(folder, 'short.txt')], /too few for --block 64/],
    ['an unknown option', ['--stepz', '3'], /unknown option '--stepz' \(Did you mean --steps\?\)/],
    ['a word for a number', ['--steps', 'many'], /--steps.*whole number/],
    ['no steps', ['--steps', '0'], /at least 1/],
    [
      'an unknown attention',
      ['--attention', 'flash'],
      /'flash' is invalid.*softmax, window, alibi, blocks, dynamic, linear, retention, gla, gatedDelta/,
    ],
    ['a window for all of it', ['--window', '8'], /--window is for --attention window or dynamic/],
    ['heads that do not divide the width', ['--width', '10', '--heads', '4'], /multiple of --heads/],
    [
      'a folder that cannot be written',
      ['--data', text, '--out', join(text, 'below-a-file')],
      /cannot write there/,
    ],
    ['a file for a folder', ['--data', text, '--out', text], /cannot write there: .* no folder/],
    ['bytes that are no text', ['--data', join(folder, 'bytes.bin')], /not UTF-8: byte 5 is 0x80/],
    ['too wide', ['--width', '1000000'], /--width 1000000: .* TiB.*; at most --width \d+ would fit/],
    ['too deep', ['--layers', '1000000000'], /--layers 1000000000: .*; at most --layers \d+ would fit/],
    ['too long', ['--block', '1000000000'], /--block 1000000000: .*; at most --block \d+ would fit/],
    ['too many at once', ['--batch', '1000000000'], /--batch 1000000000: .*; at most --batch \d+ would fit/],
    ['too much', ['--width', '4000000', '--layers', '90000000'], /nothing fits with .*; make both smaller/],
    ['too many threads', ['--threads', '300'], /--threads.*300.*from 1 to 256/],
    ['too long a sample', ['--sample', '2000000000'], /at most --sample 10000000 is written/],
  ]
  beforeAll(() => {
    writeFileSync(join(folder, 'empty.txt'), '')
    writeFileSync(join(folder, 'bytes.bin'), Uint8Array.of(1, 2, 3, 4, 5, 128))
    writeFileSync(join(folder, 'short.txt'), 'too short')
  })
  // Elsewhere the driver cannot be hidden from a process.
  it.runIf(process.platform === 'linux')('no GPU', async () => {
    const hidden = join(folder, 'no-driver')
    mkdirSync(hidden)
    writeFileSync(join(hidden, 'libvulkan.so.1'), 'no library')
    const env = { LD_LIBRARY_PATH: hidden }
    const { code, stderr } = await start([...small, '--backend', 'webgpu'], { env }).ended
    expect(stderr).toMatch(/^tiny-transformer: --backend webgpu: there is no GPU that WebGPU can use: .*\n$/)
    expect(code).toBe(2)
  })
  it.each(cases)('%s', async (_, args, message) => {
    const { code, stderr } = await start(args).ended
    expect(stderr).toMatch(message)
    expect(stderr.trim().split('\n')).toHaveLength(1)
    expect(code).toBe(2)
  })
})

it('keeps a text of 100,000 different characters', async () => {
  const many = join(folder, 'many.txt')
  writeFileSync(many, Array.from({ length: 100_000 }, (_, i) => String.fromCodePoint(0x10000 + i)).join(''))
  const sizes = ['--data', many, '--steps', '2', '--width', '8', '--batch', '2', '--block', '8']
  const { code, stdout, stderr } = await start([...small, ...sizes]).ended
  expect(stderr).toBe('')
  expect(stdout).toContain('100,000 different ones')
  expect(code).toBe(0)
})

describe('a run', () => {
  it('trains, samples, and writes its files; the same seed gives the same run', async () => {
    const losses = async (): Promise<unknown> => {
      const { code, stdout, stderr } = await start([
        ...small,
        '--steps',
        '30',
        '--warmup',
        '3',
        '--lr',
        '1e-2',
        '--seed',
        '5',
      ]).ended
      expect(stderr).toBe('')
      expect(code).toBe(0)
      expect(stdout).toContain('What it writes now')
      return JSON.parse(readFileSync(join(out, 'run.json'), 'utf8'))
    }
    const [a, b] = [
      (await losses()) as { training: { loss: number }[] },
      (await losses()) as { training: { loss: number }[] },
    ]
    expect(a.training).toHaveLength(30)
    expect(a.training.at(-1)?.loss).toBeLessThan((a.training[0]?.loss ?? 0) - 0.3)
    expect(b.training).toEqual(a.training)
    expect(readFileSync(join(out, 'loss.svg'), 'utf8')).toMatch(/^<svg/)
    for (const file of ['model.safetensors', 'sample.txt']) expect(existsSync(join(out, file))).toBe(true)
  })

  it.each(attentionKinds)('trains and writes with %s attention', async (attention) => {
    const folder = join(out, attention)
    const args = [...small, '--block', '48', '--steps', '12', '--warmup', '2', '--lr', '1e-2']
    const { code, stdout, stderr } = await start([...args, '--out', folder, '--attention', attention]).ended
    expect(stderr).toBe('')
    expect(code).toBe(0)
    expect(stdout).toContain('What it writes now')
    const run = JSON.parse(readFileSync(join(folder, 'run.json'), 'utf8'))
    expect(run.options.attention).toBe(attention)
    expect(run.training).toHaveLength(12)
    expect(run.peakBytes).toBeGreaterThan(1e5)
    expect(run.training.at(-1).loss).toBeLessThan(run.training[0].loss - 0.1)
    expect(readFileSync(join(folder, 'sample.txt'), 'utf8').length).toBeGreaterThan(15)
  })

  it('trains on a GPU, names it, and learns what the CPU does', async () => {
    const losses = async (backend: string): Promise<{ loss: number }[]> => {
      const { code, stdout, stderr } = await start([
        ...small,
        '--steps',
        '23',
        '--sample',
        '2',
        '--seed',
        '5',
        '--backend',
        backend,
      ]).ended
      expect(stderr).toBe('')
      expect(code).toBe(0)
      if (backend === 'webgpu') expect(stdout).toMatch(/^Learning .*, on \S.* \(WebGPU\)\.\n/)
      expect(stdout).toContain('step 23/23')
      expect(stdout).toContain('What it writes now')
      const run = JSON.parse(readFileSync(join(out, 'run.json'), 'utf8')) as Record<
        string,
        { loss: number }[]
      >
      return [...(run.training ?? []), ...(run.validation ?? [])]
    }
    const [cpu, gpu] = [await losses('cpu'), await losses('webgpu')]
    expect(cpu).toHaveLength(23 + 2)
    expect(gpu.length).toBe(cpu.length)
    // The same seed, batches and formulas: only the order of float32 sums differs, over 23 steps of AdamW.
    gpu.forEach(({ loss }, i) => expect(Math.abs(loss - (cpu[i]?.loss ?? 0))).toBeLessThan(1e-3))
  })

  it('takes a step on several batches as on one of their size', async () => {
    const losses = async (...sizes: string[]): Promise<number[]> => {
      const { code } = await start([...small, '--steps', '7', '--seed', '3', ...sizes]).ended
      expect(code).toBe(0)
      const run = JSON.parse(readFileSync(join(out, 'run.json'), 'utf8')) as { training: { loss: number }[] }
      return run.training.map(({ loss }) => loss)
    }
    const one = await losses('--batch', '12')
    const several = await losses('--batch', '4', '--accumulate', '3')
    expect(several).toHaveLength(7)
    // The same windows of the text: only the order of float32 sums differs, over 7 steps of AdamW.
    several.forEach((loss, i) => expect(Math.abs(loss - (one[i] ?? 0))).toBeLessThan(1e-4))
  })
})
