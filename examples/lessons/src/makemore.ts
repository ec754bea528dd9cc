/**
 * makemore, part 3 (Andrej Karpathy, 2022, github.com/karpathy/nn-zero-to-hero, lectures/makemore): a network that reads three
 * characters of a name and guesses the next one; characters as vectors, a hidden layer, batch normalisation. Then it makes names.
 * The original's names are of people; here they are made by rule (names.ts).
 */
import {
  BatchNorm1d,
  crossEntropy,
  Embedding,
  Flatten,
  Linear,
  manualSeed,
  multinomial,
  noGrad,
  randint,
  Sequential,
  SGD,
  softmax,
  Tanh,
  type Tensor,
  tensor,
} from 'tilegrad'
import { makeNames } from './names.ts'

const blockSize = 3 // context length: how many characters do we take to predict the next one?

/** Windows of characters (N, blockSize) and the ones that follow, (N). */
function buildDataset(words: readonly string[], stoi: ReadonlyMap<string, number>): { X: Tensor; Y: Tensor } {
  const [X, Y] = [[] as number[][], [] as number[]]
  for (const w of words) {
    let context = new Array<number>(blockSize).fill(0)
    for (const ch of `${w}.`) {
      const ix = stoi.get(ch) as number
      X.push(context)
      Y.push(ix)
      context = [...context.slice(1), ix]
    }
  }
  return { X: tensor(X, { dtype: 'int32' }), Y: tensor(Y, { dtype: 'int32' }) }
}

export async function main({ steps = 2000, log = console.log } = {}): Promise<number> {
  manualSeed(2147483647)
  const words = makeNames(1500)
  const chars = ['.', ...[...new Set(words.join(''))].sort()]
  const stoi = new Map(chars.map((c, i) => [c, i]))
  const vocabSize = chars.length
  const n = Math.floor(0.9 * words.length)
  const { X: Xtr, Y: Ytr } = buildDataset(words.slice(0, n), stoi)
  const { X: Xdev, Y: Ydev } = buildDataset(words.slice(n), stoi)

  const [nEmbd, nHidden] = [10, 64]
  const model = new Sequential(
    new Embedding(vocabSize, nEmbd),
    new Flatten(),
    new Linear(nEmbd * blockSize, nHidden, { bias: false }),
    new BatchNorm1d(nHidden),
    new Tanh(),
    new Linear(nHidden, vocabSize),
  )
  log(`${model.numParameters()} parameters`)
  const optimizer = new SGD(model.parameters(), { lr: 0.1 })
  const batchSize = 32
  for (let i = 0; i < steps; i++) {
    const ix = randint(0, Xtr.shape[0] as number, [batchSize])
    const logits = model.forward(Xtr.at(ix))
    const loss = crossEntropy(logits, Ytr.at(ix))
    optimizer.zeroGrad()
    loss.backward()
    optimizer.lr = i < (3 * steps) / 4 ? 0.1 : 0.01 // step learning rate decay
    optimizer.step()
    if (i % 500 === 0) log(`${i}/${steps}: ${(await loss.item()).toFixed(4)}`)
  }

  model.eval()
  const loss = noGrad(() => crossEntropy(model.forward(Xdev), Ydev))
  log(`dev loss ${(await loss.item()).toFixed(4)}, of a guess ${Math.log(vocabSize).toFixed(4)}`)
  for (let k = 0; k < 10; k++) {
    const out: string[] = []
    let context = new Array<number>(blockSize).fill(0)
    for (;;) {
      const logits = noGrad(() => model.forward(tensor([context], { dtype: 'int32' })))
      const ix = await multinomial(softmax(logits, 1), 1).item()
      if (ix === 0 || out.length > 20) break
      context = [...context.slice(1), ix]
      out.push(chars[ix] as string)
    }
    log(out.join(''))
  }
  return loss.item()
}
