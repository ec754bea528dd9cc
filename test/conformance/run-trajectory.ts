import { join } from 'node:path'
import { type Backend, data, scope, type Tensor, withBackend } from '@tilegrad/core'
import { AdamW, clipGradNorm, GPT, type StateDict } from '@tilegrad/nn'
import { difference } from './compare.ts'
import { readJson, Skip, Tensors } from './manifest.ts'
import { failed, type Outcome, PASSED, type Report, skipped } from './report.ts'

interface Trajectory {
  readonly model: {
    readonly vocab: number
    readonly block: number
    readonly layers: number
    readonly heads: number
    readonly embed: number
    readonly gelu: string
  }
  readonly adamw: {
    readonly lr: number
    readonly betas: readonly [number, number]
    readonly eps: number
    readonly weight_decay: number
    readonly clip: number
  }
  /** `i%3`: step i trains on batch i modulo 3. */
  readonly batch_of_step: string
  /** Before each step's update. */
  readonly loss: readonly number[]
  /** Before clipping. */
  readonly grad_norm: readonly number[]
}

/** Where the fixture's layers are in our GPT; it packs a block's layers side by side. */
const LAYERS: Readonly<Record<string, string>> = {
  c_attn: 'attn.c_attn',
  c_proj: 'attn.c_proj',
  c_fc: 'mlp.c_fc',
  c_proj2: 'mlp.c_proj',
}
const ours = (name: string): string =>
  name.replace(/^(h\.\d+)\.(\w+)\./, (_, block, layer) => `${block}.${LAYERS[layer] ?? layer}.`)

/** A step's rounding errors, of the order 1e-7, grow over the run: four digits are left at its end. */
const STEP = 1e-4
const WEIGHTS = { rtol: 1e-4, atol: 1e-4 }

/**
 * What a final weight should be. A bias of the keys adds the same to all scores of a row: its gradient is 0, and AdamW
 * divides rounding noise by its own size, in PyTorch as here. So it is held against weight decay alone.
 */
function expected(name: string, tensors: Tensors, { adamw, loss }: Trajectory): Float64Array {
  const values = Float64Array.from(tensors.values(`final.${name}`))
  if (!name.endsWith('c_attn.bias')) return values
  const initial = tensors.values(`init.${name}`)
  const third = values.length / 3
  const kept = (1 - adamw.lr * adamw.weight_decay) ** loss.length
  for (let i = third; i < 2 * third; i++) values[i] = (initial[i] as number) * kept
  return values
}

/** Trains the model of `trajectory.json` from its initial weights and compares every step, and the final weights. */
export async function runTrajectory(
  dir: string,
  backend: Backend,
  only: RegExp,
  report: Report,
): Promise<void> {
  if (!only.test('trajectory')) return
  const plan = readJson(join(dir, 'trajectory.json')) as Trajectory
  let outcome: Outcome
  try {
    const tensors = new Tensors(join(dir, 'trajectory.safetensors'), backend)
    outcome = await train(plan, tensors, backend)
  } catch (error) {
    outcome = error instanceof Skip ? skipped(error.message) : failed(String(error))
  }
  report.add('trajectory', outcome)
}

function build({ model: m }: Trajectory, tensors: Tensors): GPT {
  if (m.gelu !== 'erf' && m.gelu !== 'tanh') throw new Skip(`trajectory: no gelu '${m.gelu}' here`)
  const names = tensors.names('init.')
  const model = new GPT({
    vocabSize: m.vocab,
    blockSize: m.block,
    numLayers: m.layers,
    numHeads: m.heads,
    embedDim: m.embed,
    tieWeights: !names.includes('lm_head.weight'),
    activation: m.gelu === 'erf' ? 'gelu' : 'gelu_tanh',
  })
  scope(() => {
    const weights: StateDict = {}
    for (const name of names) weights[ours(name)] = tensors.load(`init.${name}`)
    model.loadStateDict(weights)
  })
  return model
}

async function train(plan: Trajectory, tensors: Tensors, backend: Backend): Promise<Outcome> {
  const { lr, betas, eps, weight_decay: weightDecay, clip } = plan.adamw
  const every = /^i\s*%\s*(\d+)$/.exec(plan.batch_of_step)
  if (!every) throw new Skip(`trajectory: batch_of_step '${plan.batch_of_step}' is not of the form i%3`)
  const model = withBackend(backend, () => build(plan, tensors))
  const optimizer = new AdamW(model.parameters(), { lr, betas, eps, weightDecay })
  const batches = tensors.load('batches')
  const [, , width] = batches.shape
  const step = (i: number): [loss: Tensor, norm: Tensor] =>
    scope(() => {
      const tokens = batches.select(0, i % Number(every[1]))
      const { loss } = model.forward(tokens.narrow(1, 0, width - 1), tokens.narrow(1, 1, width - 1))
      loss.backward()
      const norm = clipGradNorm(model.parameters(), clip)
      optimizer.step()
      optimizer.zeroGrad()
      return [loss.detach(), norm]
    })
  for (let i = 0; i < plan.loss.length; i++) {
    const results = withBackend(backend, () => step(i))
    const [loss, norm] = [await results[0].item(), await results[1].item()]
    for (const t of results) t.dispose()
    for (const [what, got, want] of [
      ['loss', loss, plan.loss[i]],
      ['gradient norm', norm, plan.grad_norm[i]],
    ] as const) {
      if (!(Math.abs(got - want) <= STEP * Math.abs(want)))
        return failed(`step ${i}: ${what} is ${got}; expected ${want} (allowed ${STEP} · |expected|)`)
    }
  }
  const state = model.stateDict()
  for (const name of tensors.names('final.')) {
    const weight = state[ours(name)]
    const why = difference(await data(weight), expected(name, tensors, plan), weight.shape, WEIGHTS)
    if (why) return failed(`final ${name}: ${why}`)
  }
  return PASSED
}
