// A dataset that does what must not happen: in the place that an index tells.
export const dataset = async () => ({
  length: 3,
  get(i) {
    if (i === 0) process.exit(3)
    if (i === 1) return () => 1
    for (;;);
  },
})
