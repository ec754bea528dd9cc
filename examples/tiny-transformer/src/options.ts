import { Command, CommanderError, InvalidArgumentError, Option } from 'commander'
import { type AttentionKind, attentionKinds } from 'tilegrad'
import { UsageError } from './usage-error.ts'

export interface Options {
  data?: string
  steps: number
  seed: number
  threads?: number
  backend: 'cpu' | 'webgpu' | 'reference'
  attention: AttentionKind
  window?: number
  layers: number
  heads: number
  width: number
  block: number
  batch: number
  accumulate: number
  dropout: number
  bias: boolean
  lr: number
  minLr: number
  warmup: number
  beta2: number
  weightDecay: number
  clip: number
  evalEvery: number
  evalBatches: number
  sample: number
  out: string
}

const whole =
  (least: number) =>
  (text: string): number => {
    const n = Number(text)
    if (text.trim() === '' || !Number.isSafeInteger(n) || n < least)
      throw new InvalidArgumentError(`expected a whole number, at least ${least}`)
    return n
  }

const real =
  (least: number, below = Number.POSITIVE_INFINITY) =>
  (text: string): number => {
    const x = Number(text)
    const range = below === Number.POSITIVE_INFINITY ? `at least ${least}` : `from ${least} to below ${below}`
    if (text.trim() === '' || !(x >= least && x < below))
      throw new InvalidArgumentError(`expected a number, ${range}`)
    return x
  }

/** The command line. Its defaults are the main job: about two minutes on two cores. */
export function command(): Command {
  return new Command('tiny-transformer')
    .description('Trains a small character-level GPT on a text and shows what it learned.')
    .usage('[options]     (after `npm start --`)')
    .option('--data <file>', 'a UTF-8 text to learn from (default: Moby-Dick)')
    .option('--steps <n>', 'optimiser steps', whole(1), 1600)
    .option('--seed <n>', 'the same seed gives the same run', whole(0), 1337)
    .option('--threads <n>', 'CPU threads (default: all cores)', whole(1))
    .addOption(
      new Option('--backend <name>', 'where to compute')
        .choices(['cpu', 'webgpu', 'reference'])
        .default('cpu'),
    )
    .addOption(new Option('--attention <name>', 'how to attend').choices(attentionKinds).default('softmax'))
    .option(
      '--window <n>',
      'positions that attention window sees, and dynamic beside its own 16 (default: a quarter of --block)',
      whole(1),
    )
    .option('--layers <n>', 'transformer blocks', whole(1), 4)
    .option('--heads <n>', 'attention heads per block', whole(1), 4)
    .option('--width <n>', 'size of a token’s vector, a multiple of --heads', whole(1), 128)
    .option('--block <n>', 'characters of context', whole(1), 64)
    .option('--batch <n>', 'windows per step', whole(1), 12)
    .option('--accumulate <n>', 'batches whose gradients make one step', whole(1), 1)
    .option('--dropout <p>', 'share of activations dropped while training', real(0, 1), 0)
    .option('--bias', 'biases in linear and norm layers', false)
    .option('--lr <x>', 'highest learning rate', real(0), 2e-3)
    .option('--min-lr <x>', 'learning rate at the end', real(0), 1e-4)
    .option('--warmup <n>', 'steps of rising learning rate', whole(0), 100)
    .option('--beta2 <x>', 'AdamW’s memory of squared gradients', real(0, 1), 0.99)
    .option('--weight-decay <x>', 'AdamW’s decay of matrices', real(0), 0.1)
    .option('--clip <x>', 'largest gradient norm; 0: no limit', real(0), 1)
    .option('--eval-every <n>', 'steps between validation losses', whole(1), 100)
    .option('--eval-batches <n>', 'batches in a validation loss', whole(1), 20)
    .option('--sample <n>', 'characters to write at the end', whole(0), 500)
    .option('--out <dir>', 'where results go', 'out')
    .allowExcessArguments(false)
}

/** Parses arguments. @throws UsageError for a bad one; exits 0 for --help. */
export function parseOptions(args: readonly string[]): Options {
  const program = command()
    .exitOverride()
    .configureOutput({ writeErr: () => {} })
  try {
    program.parse(args, { from: 'user' })
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) process.exit(0)
    throw new UsageError(
      `${(error as Error).message.replace(/^error: /, '').replaceAll('\n', ' ')}; --help lists the options`,
    )
  }
  const options = program.opts<Options>()
  if (options.width % options.heads !== 0)
    throw new UsageError(`--width ${options.width} must be a multiple of --heads ${options.heads}`)
  if (options.window !== undefined && options.attention !== 'window' && options.attention !== 'dynamic')
    throw new UsageError(`--window is for --attention window or dynamic, not ${options.attention}`)
  if (options.minLr > options.lr)
    throw new UsageError(`--min-lr ${options.minLr} must not be above --lr ${options.lr}`)
  return options
}
