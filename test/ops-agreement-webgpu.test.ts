import { createWebGpuBackend } from '@tilegrad/backend-webgpu'
import { afterAll } from 'vitest'
import { testAgreement } from './agreement.ts'

const gpu = await createWebGpuBackend()
afterAll(() => gpu.close())

testAgreement('webgpu', gpu)
