/** The ports learn: losses that an untrained model, or one with a fault, does not reach. */
import { spawnSync } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { loadPretrained, noGrad, readSafetensors, tensor } from 'tilegrad'
import { expect, test } from 'vitest'
import { main as annotated } from '../src/annotated-transformer.ts'
import { main as charLSTM } from '../src/char-lstm.ts'
import { main as gpt } from '../src/gpt.ts'
import { main as huggingFace } from '../src/hugging-face.ts'
import { main as makemore } from '../src/makemore.ts'
import { main as moons } from '../src/moons.ts'
import { GPT, main as nanoGPT } from '../src/nanogpt.ts'
import { main as vit } from '../src/vit.ts'

/** Runs a lesson without its output, and with what it made. */
const run = <T>(fn: (log: () => void) => Promise<T>): Promise<T> => fn(() => {})

test('two moons are told apart', async () => {
  expect(await run((log) => moons({ steps: 60, log }))).toBeGreaterThan(0.97)
})

test('makemore guesses the next character of names: a guess has 3.1 nats', async () => {
  expect(await run((log) => makemore({ steps: 600, log }))).toBeLessThan(2.1)
})

test('the GPT of the lecture learns from characters: frequencies alone have 3.1 nats', async () => {
  const small = { maxIters: 120, evalIters: 4, evalInterval: 1000, nLayer: 2, nEmbd: 32, nHead: 2 }
  expect(await run((log) => gpt({ ...small, textLength: 50_000, learningRate: 3e-3, log }))).toBeLessThan(
    2.75,
  )
})

test('the encoder and decoder learn to copy', async () => {
  expect(await run((log) => annotated({ steps: 120, N: 1, warmup: 60, dropout: 0, log }))).toBeGreaterThan(
    0.9,
  )
})

test('an LSTM and a GPT learn from characters', async () => {
  const { lstm, gpt } = await run((log) =>
    charLSTM({ steps: 120, rnnSize: 48, numLayers: 1, textLength: 50_000, log }),
  )
  expect(lstm).toBeLessThan(2.8)
  expect(gpt).toBeLessThan(2.9)
})

test('a vision transformer tells shapes apart', async () => {
  expect(await run((log) => vit({ steps: 150, log }))).toBeGreaterThan(0.9)
})

test('nanoGPT learns from characters', async () => {
  const small = {
    maxIters: 150,
    evalIters: 4,
    lrDecayIters: 150,
    warmupIters: 10,
    gradientAccumulationSteps: 1,
  }
  expect(await run((log) => nanoGPT({ ...small, textLength: 50_000, learningRate: 3e-3, log }))).toBeLessThan(
    2.8,
  )
})

const checkpoint = fileURLToPath(new URL('../../../test/fixtures/conformance/gpt2_tiny', import.meta.url))

test('a checkpoint of Hugging Face is continued, trained and saved', async () => {
  const ids = Array.from({ length: 24 }, (_, i) => 3 + ((5 * i) % 17))
  const { before, after, weights } = await run((log) => huggingFace(checkpoint, ids, { steps: 15, log }))
  expect(after).toBeLessThan(before - 0.5)
  expect(readSafetensors(weights).tensors.has('transformer.wte.weight')).toBe(true)
})

test('nanoGPT’s model, written out, computes what the checkpoint’s does', async () => {
  const config = JSON.parse(await readFile(`${checkpoint}/config.json`, 'utf8'))
  const loaded = loadPretrained(config, await readFile(`${checkpoint}/model.safetensors`)).eval()
  const {
    n_layer: nLayer,
    n_head: nHead,
    n_embd: nEmbd,
    vocab_size: vocabSize,
    n_positions: blockSize,
  } = config
  const model = new GPT({ ...{ nLayer, nHead, nEmbd, vocabSize, blockSize }, dropout: 0, bias: true }).eval()
  const own = Object.entries(loaded.stateDict())
  // One tied matrix has two names.
  const names = own.flatMap(([name, t]) =>
    name === 'lm_head.weight' ? [] : [[`transformer.${name}`, t] as const],
  )
  model.loadStateDict(Object.fromEntries(names))
  const idx = tensor([[1, 5, 2, 8, 3]], { dtype: 'int32' })
  const [want, got] = noGrad(() => [loaded.forward(idx).logits.at(':', '-1:'), model.forward(idx).logits])
  const [a, b] = [await want.data(), await got.data()]
  // The checkpoint's activation is approximate, by tanh.
  for (const [i, v] of b.entries()) expect(Math.abs(v - a[i])).toBeLessThan(5e-3)
})

test('the README tells how long the ports are', async () => {
  const readme = await readFile(new URL('../README.md', import.meta.url), 'utf8')
  const rows = [...readme.matchAll(/^\| \[[\w-]+\]\((src\/[\w-]+\.ts)\) \|[^|]*\|[^|]*\| (\d+) \|/gm)]
  expect(rows).toHaveLength(8)
  for (const [, file, told] of rows) {
    const text = await readFile(new URL(`../${file}`, import.meta.url), 'utf8')
    const code = text.replace(/\/\*[\s\S]*?\*\//g, '').split('\n')
    const lines = code.filter((line) => line.trim() !== '' && !line.trim().startsWith('//')).length
    expect(`${file} ${lines}`).toBe(`${file} ${told}`)
  }
})

test('a lesson that is not there is named, with those that are', () => {
  const main = fileURLToPath(new URL('../src/main.ts', import.meta.url))
  const { status, stderr } = spawnSync(process.execPath, ['--import', 'tsx', main, 'moon'], {
    encoding: 'utf8',
  })
  expect(stderr).toMatch(/^There is no lesson 'moon' to run\.\nusage: .* moons, /)
  expect(status).toBe(2)
})
