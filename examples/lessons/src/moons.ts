/**
 * Two moons, after the demo of micrograd (Andrej Karpathy, 2020, github.com/karpathy/micrograd, demo.ipynb): a perceptron with two
 * hidden layers learns to tell two half circles apart that lie in each other, by a loss with a margin and a little decay.
 */
import {
  cat,
  init,
  Linear,
  linspace,
  manualSeed,
  ones,
  ReLU,
  randn,
  Sequential,
  SGD,
  stack,
  type Tensor,
} from 'tilegrad'

/** Points (n, 2) of two half circles with noise, and −1 or 1 for the one that they belong to, (n, 1). */
export function makeMoons(n: number, noise = 0.1): { X: Tensor; y: Tensor } {
  const t = linspace(0, Math.PI, n / 2)
  const outer = stack([t.cos(), t.sin()], 1)
  const inner = stack([t.cos().neg().add(1), t.sin().neg().add(0.5)], 1)
  const points = cat([outer, inner], 0)
  const y = cat([ones([n / 2, 1]).neg(), ones([n / 2, 1])], 0)
  return { X: points.add(randn([n, 2]).mul(noise)), y }
}

export async function main({ steps = 100, log = console.log } = {}): Promise<number> {
  manualSeed(1337)
  const { X, y } = makeMoons(100)

  const model = new Sequential(
    new Linear(2, 16),
    new ReLU(),
    new Linear(16, 16),
    new ReLU(),
    new Linear(16, 1),
  )
  // As micrograd begins: weights anywhere in −1 … 1, biases at 0.
  for (const p of model.parameters()) p.rank === 2 ? init.uniform_(p, -1, 1) : init.zeros_(p)
  log(String(model))
  const optimizer = new SGD(model.parameters(), { lr: 1 })

  let accuracy = 0
  for (let k = 0; k < steps; k++) {
    const scores = model.forward(X)
    const dataLoss = y.neg().mul(scores).add(1).relu().mean()
    const regLoss = model
      .parameters()
      .map((p) => p.square().sum())
      .reduce((a, b) => a.add(b))
      .mul(1e-4)
    const totalLoss = dataLoss.add(regLoss)

    optimizer.zeroGrad()
    totalLoss.backward()
    optimizer.lr = 1 - (0.9 * k) / 100
    optimizer.step()

    accuracy = await scores.gt(0).eq(y.gt(0)).to('float32').mean().item()
    if (k % 10 === 0 || k === steps - 1)
      log(`step ${k} loss ${(await totalLoss.item()).toFixed(4)}, accuracy ${(100 * accuracy).toFixed(0)} %`)
  }
  return accuracy
}
