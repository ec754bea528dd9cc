import { manualSeed } from '@tilegrad/core'
import { beforeEach } from 'vitest'

// What a test draws is the same in every run, and whatever ran before it: a failure comes back when its test runs alone.
beforeEach(() => manualSeed(20_261_130))
