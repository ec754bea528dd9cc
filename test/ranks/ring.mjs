/** What a worker of the ring's tests does: attention on its shard, or a way of failing. */
import { createCpuBackend, ringAttention, ringShard, tensor } from 'tilegrad'
import { asRank } from 'tilegrad/workers'

const spin = (ms) => {
  for (const until = performance.now() + ms; performance.now() < until; );
}

await asRank(async (link, { operands, isCausal, threads, fault }) => {
  if (fault === 'throw' && link.rank === 1) throw new RangeError('out of luck')
  if (fault === 'exit' && link.rank === 1) process.exit(3)
  if (fault === 'hang' && link.rank === 0) await new Promise((resolve) => setTimeout(resolve, 60_000))
  if (fault === 'late') {
    // The last message of a rank that is gone before the other one listens.
    if (link.rank === 1) {
      link.send(0, {
        what: 'last',
        tensors: [{ data: new Float32Array([1, 2]), shape: [2], dtype: 'float32' }],
      })
      return 'sent'
    }
    spin(500)
    const { tensors } = await link.receive(1)
    return tensors[0].data
  }
  const device = createCpuBackend({ threads })
  const order = isCausal ? 'zigzag' : 'contiguous'
  const [q, k, v, dout] = operands.map(([data, shape]) =>
    ringShard(tensor(data, shape, { device }), 2, link, order),
  )
  const { out, backward } = await ringAttention(link, q, k, v, { isCausal })
  const { dq, dk, dv } = await backward(dout)
  const parts = await Promise.all(
    [out, dq, dk, dv].map(async (t) => ({ data: await t.data(), shape: t.shape })),
  )
  await device.close()
  return parts
})
